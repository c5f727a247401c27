package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
)

// adminClass is the class Mintmark ships for admin credentials.
const adminClass = "mintmark-admin"

type bootstrapOptions struct {
	*app
	name    string
	class   string
	timeout time.Duration
	noPrint bool
}

func (a *app) bootstrapCommand() *cobra.Command {
	o := &bootstrapOptions{app: a}
	c := &cobra.Command{
		Use:   "bootstrap [flags]",
		Short: "Make the first admin key of an installation and print it once",
		Long: "Make the first admin key of an installation: an APIKey with every permission in Mintmark's own namespace.\n\n" +
			"The value goes to standard output, everything else to standard error. Where an admin key of that name exists,\n" +
			"nothing is changed and nothing printed: the command says how to read that key's value or to replace it.",
		Example: `
			# Into a file only you can read
			(umask 077; mintmark bootstrap > admin.key)

			# Straight into a JWT
			mintmark bootstrap | mintmark token`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	c.Flags().StringVar(&o.name, "name", "admin", "The key's name.")
	c.Flags().StringVar(&o.class, "class", adminClass, "CredentialClass it is made under.")
	c.Flags().DurationVar(&o.timeout, "timeout", 2*time.Minute, "How long to wait until it is Ready.")
	c.Flags().BoolVar(&o.noPrint, "no-print", false, "Do not print the value.")
	return c
}

func (o *bootstrapOptions) run(ctx context.Context) error {
	c, err := o.cluster()
	if err != nil {
		return err
	}
	if !c.namespaceSet {
		c.namespace = DefaultNamespace
	}
	spec := specFlags{class: o.class, admin: true, description: "First admin key, made by mintmark bootstrap"}
	object, err := spec.object(kindOf(new(v1alpha1.APIKey)), c.namespace, o.name)
	if err != nil {
		return err
	}
	r := refOf(object)
	existing, err := c.get(ctx, r)
	if err == nil {
		return o.exists(existing)
	}
	if !apierrors.IsNotFound(err) || isMissingResource(err) {
		return err
	}
	if err := o.create(ctx, c, object); err != nil {
		if again, getErr := c.get(ctx, r); getErr == nil {
			return o.exists(again) // somebody else was faster
		}
		return err
	}
	o.note("%s created", r)
	ready, err := c.awaitReady(ctx, object, o.timeout, o.app)
	if err != nil {
		return fmt.Errorf("%w\nThe key exists: when it is Ready, read its value with: %s", err, readSecret(object))
	}
	if o.noPrint {
		return nil
	}
	return o.printValue(ctx, c, ready)
}

// create waits for the webhook: right after the installation the controller may
// still be starting.
func (o *bootstrapOptions) create(ctx context.Context, c *cluster, object v1alpha1.Credential) error {
	deadline := time.Now().Add(o.timeout)
	for told := false; ; told = true {
		err := c.create(ctx, object)
		if !isWebhookDown(err) || time.Now().After(deadline) {
			return err
		}
		if !told {
			o.note("waiting for Mintmark's admission webhook to answer")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// exists refuses, and says how to get on.
func (o *bootstrapOptions) exists(key v1alpha1.Credential) error {
	r := refOf(key)
	if !key.CredentialSpec().Admin {
		return fmt.Errorf("%s exists already, and is no admin key: choose another name with --name", r)
	}
	state := "is not Ready yet"
	if cond := readyCondition(key); cond != nil {
		state = fmt.Sprintf("is not Ready (%s: %s)", cond.Reason, cond.Message)
	}
	if isReady(key) {
		state = "is Ready"
	}
	return errors.New(r.String() + " exists already and " + state + "; nothing was changed.\n" +
		"  to read its value:           " + readSecret(key) + "\n" +
		"  to give it a new value:      " + o.program + " rotate " + r.slashed() + " -n " + r.namespace + " --print\n" +
		"  to make another admin key:   " + o.program + " bootstrap --name NAME")
}

// readSecret is the kubectl command that prints a credential's value.
func readSecret(o v1alpha1.Credential) string {
	name := o.CredentialStatus().SecretName
	if target := o.CredentialSpec().Secret; name == "" && target != nil {
		name = target.Name
	}
	if name == "" {
		name = o.GetName()
	}
	return fmt.Sprintf(`kubectl get secret %s -n %s -o go-template='{{index .data "%s" | base64decode}}'`,
		name, o.GetNamespace(), o.CredentialKind().SecretKey())
}
