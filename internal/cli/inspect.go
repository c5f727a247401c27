package cli

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mintmark-dev/mintmark/internal/credential"
)

type inspectOptions struct {
	*app
	key    keySource
	sha256 bool
	output string
}

func (a *app) inspectCommand() *cobra.Command {
	o := &inspectOptions{app: a}
	c := &cobra.Command{
		Use:   "inspect [--key-file FILE] [flags]",
		Short: "Tell offline whether a value is a Mintmark credential, and whether its checksum is right",
		Long: "Tell offline whether a value is a Mintmark credential, and whether its checksum is right. Nobody is asked: whether it\n" +
			"is accepted is told by 'mintmark verify'.\n\n" +
			"Exit code: 0 for a credential in one of Mintmark's formats, 1 for anything else.",
		Example: `
			pbpaste | mintmark inspect

			# The hash to declare a value by, in spec.external.sha256
			mintmark inspect --key-file key --sha256`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	c.Flags().StringVar(&o.key.file, "key-file", "", "File with the value; - is standard input. Default: $"+envKey+", else standard input.")
	c.Flags().BoolVar(&o.sha256, "sha256", false, "Print the SHA-256 of the value alone, for spec.external.sha256.")
	c.Flags().StringVarP(&o.output, "output", "o", "", "Output format: json or yaml.")
	return c
}

// inspection is what can be told of a value without asking anybody.
type inspection struct {
	Format      string `json:"format"`
	Environment string `json:"environment,omitempty"`
	Prefix      string `json:"prefix,omitempty"`
	// Checksum: correct, wrong, or none where the format has none.
	Checksum string `json:"checksum,omitempty"`
	Detail   string `json:"detail,omitempty"`
	// Claims of a JWT, which nobody has verified.
	Claims map[string]any `json:"unverifiedClaims,omitempty"`
	ours   bool
}

func (o *inspectOptions) run(ctx context.Context) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	value, err := o.key.read(ctx, o.app)
	if err != nil {
		return err
	}
	if o.sha256 {
		token, err := credential.Parse(value)
		if err != nil {
			return fmt.Errorf("no hash is made of it: %s", inspectValue(value).Detail)
		}
		inner := token.Inner()
		_, err = fmt.Fprintln(o.Out, hex.EncodeToString(inner[:]))
		return err
	}
	found := inspectValue(value)
	if o.output != "" {
		err = o.printPlain(found, o.output)
	} else {
		o.describe(found)
	}
	if err == nil && !found.ours {
		err = &exitError{code: 1}
	}
	return err
}

func (o *inspectOptions) describe(found inspection) {
	for _, line := range []struct{ label, text string }{
		{"Format", found.Format},
		{"Environment", found.Environment},
		{"Prefix", found.Prefix},
		{"Checksum", found.Checksum},
		{"Detail", found.Detail},
	} {
		if line.text != "" {
			fmt.Fprintf(o.Out, "%-13s%s\n", line.label+":", line.text)
		}
	}
	for _, claim := range []string{"iss", "sub", "aud", "exp"} {
		if v, ok := found.Claims[claim]; ok {
			fmt.Fprintf(o.Out, "%-13s%s (unverified)\n", claim+":", printable(fmt.Sprint(v)))
		}
	}
}

var (
	serviceTokenShape = regexp.MustCompile(`^sk_(?:([a-z][a-z0-9]{0,15})_)?[0-9a-f]{64}([0-9a-f]{8})?$`)
	nearServiceToken  = regexp.MustCompile(`(?i)^sk_(?:[a-z0-9]+_)?[0-9a-f]{48,88}$`)
	apiKeyShape       = regexp.MustCompile(`^mk[0-9A-Za-z]{6}\.[0-9A-Za-z]{49}$`)
	nearAPIKey        = regexp.MustCompile(`(?i)^mk[0-9a-z]{4,8}\.[0-9a-z]{40,58}$`)
)

// inspectValue says what a value is and, where it is nothing, what it nearly is.
func inspectValue(value string) inspection {
	if claims, ok := jwtClaims(value); ok {
		return inspection{Format: "JWT", Claims: claims, Detail: "its signature is checked by 'mintmark verify'"}
	}
	token, err := credential.Parse(value)
	switch {
	case err == nil && !token.External():
		return inspectOwn(token)
	case serviceTokenShape.MatchString(value), apiKeyShape.MatchString(value):
		return inspection{
			Format: "none", Checksum: "wrong",
			Detail: "the shape of a Mintmark credential, but its checksum is wrong: mistyped, cut and glued, or made up",
		}
	case nearServiceToken.MatchString(value):
		return inspection{Format: "none", Detail: fmt.Sprintf(
			"nearly a service token: that is sk_, perhaps an environment and _, and 64 or 72 hexadecimal digits in lower case; this has %d characters", len(value))}
	case nearAPIKey.MatchString(value):
		return inspection{Format: "none", Detail: fmt.Sprintf(
			"nearly an API key: that is 8 characters, a dot and 49 characters; this has %d characters", len(value))}
	case err == nil:
		return inspection{Format: "foreign", Detail: "not one of Mintmark's formats: only a credential declared by its SHA-256 (spec.external) can have it"}
	}
	return inspection{Format: "none", Detail: fmt.Sprintf("%d characters of that kind can be no credential", len(value))}
}

func inspectOwn(token credential.Token) inspection {
	found := inspection{Format: string(token.Kind()), Prefix: token.Prefix(), Checksum: "correct", ours: true}
	if m := serviceTokenShape.FindStringSubmatch(token.Reveal()); m != nil {
		found.Environment = m[1]
		if m[2] == "" {
			found.Checksum = "none"
		}
	}
	return found
}

var errNoJWT = errors.New("not a JWT")

// jwtClaims reads the claims of a JWT in compact serialisation, verifying
// nothing.
func jwtClaims(value string) (map[string]any, bool) {
	parts := strings.Split(value, ".")
	if len(parts) != 3 {
		return nil, false
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	var claims map[string]any
	if decodePart(parts[0], &header) != nil || header.Algorithm == "" || decodePart(parts[1], &claims) != nil {
		return nil, false
	}
	return claims, true
}

func decodePart(part string, into any) error {
	data, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return errNoJWT
	}
	return json.Unmarshal(data, into)
}
