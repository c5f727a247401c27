package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type tokenOptions struct {
	*app
	server   serverFlags
	key      keySource
	audience []string
	ttl      string
	output   string
}

func (a *app) tokenCommand() *cobra.Command {
	o := &tokenOptions{app: a}
	c := &cobra.Command{
		Use:   "token [--key-file FILE | --from KIND/NAME] [flags]",
		Short: "Exchange a key for a short-lived JWT",
		Long: "Exchange an API key or a service token for a short-lived JWT, and print that.\n\n" +
			"The key comes from --key-file, $" + envKey + " or standard input, or straight from a credential's Secret (--from).",
		Example: `
			mintmark token --key-file admin.key

			# From a Secret, for one audience
			mintmark token --from servicetoken/ci-deploy -n payments --audience https://api.example.com

			# In a request
			curl -H "Authorization: Bearer $(mintmark token --key-file key)" https://api.example.com/orders`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.server.add(c.Flags())
	o.key.add(c.Flags(), "key")
	c.Flags().StringArrayVar(&o.audience, "audience", nil, "Audiences, of those the credential's tokens may be for. Default: the credential's.")
	c.Flags().StringVar(&o.ttl, "ttl", "", "How long it lives, such as 15m. Default, and at most: the credential's.")
	c.Flags().StringVarP(&o.output, "output", "o", "", "Print the server's whole answer: json or yaml.")
	return c
}

// tokenRequest and tokenResponse are those of POST /api/auth/token.
type tokenRequest struct {
	Audience []string `json:"audience,omitempty"`
	TTL      string   `json:"ttl,omitempty"`
}

type tokenResponse struct {
	Token       string `json:"token"`
	ExpiresIn   int64  `json:"expires_in"`
	TokenType   string `json:"token_type"`
	KeyID       string `json:"key_id"`
	Permissions string `json:"permissions"`
	IsAdmin     bool   `json:"is_admin"`
}

func (o *tokenOptions) run(ctx context.Context) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	if o.ttl != "" {
		if _, err := parseDuration("ttl", o.ttl, false); err != nil {
			return err
		}
	}
	s, err := o.connect(&o.server)
	if err != nil {
		return err
	}
	key, err := o.key.read(ctx, o.app)
	if err != nil {
		return err
	}
	got, err := s.call(ctx, http.MethodPost, "/api/auth/token", nil, key, tokenRequest{words(o.audience), o.ttl})
	if err != nil {
		return err
	}
	if got.status != http.StatusOK {
		return refusal(got)
	}
	var response tokenResponse
	if err := json.Unmarshal(got.body, &response); err != nil || response.Token == "" {
		return unanswered("%s did not answer with a token: is it Mintmark's server?", s.base)
	}
	if o.output != "" {
		return o.printPlain(response, o.output)
	}
	o.note("expires in %s, permissions: %s", time.Duration(response.ExpiresIn)*time.Second, permissionsInWords(response.Permissions, response.IsAdmin))
	_, err = fmt.Fprintln(o.Out, response.Token)
	return err
}

func permissionsInWords(permissions string, admin bool) string {
	switch {
	case admin:
		return "every one (admin)"
	case permissions == "":
		return "none"
	}
	return printable(permissions)
}

// refusal makes an error of an answer that is no yes: 401 and 403 are the "no" of
// exit code 1; everything else is no verdict.
func refusal(r answer) error {
	switch {
	case r.status == http.StatusUnauthorized:
		return errors.New("not accepted: unknown, wrong, expired, revoked or retired; the server does not say which: " + printable(r.reason()))
	case r.status == http.StatusForbidden:
		return errors.New("good, but not allowed: " + printable(r.reason()))
	case r.status >= 300 && r.status < 400:
		return unanswered("the server answered with a redirect (HTTP %d), which is not followed: give the URL it leads to", r.status)
	}
	return unanswered("no verdict: %s", printable(r.reason()))
}

type verifyOptions struct {
	*app
	server      serverFlags
	key         keySource
	permissions []string
	audience    []string
	output      string
}

func (a *app) verifyCommand() *cobra.Command {
	o := &verifyOptions{app: a}
	c := &cobra.Command{
		Use:   "verify [--key-file FILE | --from KIND/NAME] [flags]",
		Short: "Ask the server who a key or JWT is, and whether it may do something",
		Long: "Present a key or a JWT to the server, and print who it is and what it may do.\n\n" +
			"Exit code: 0 where it is accepted (and holds every --permission), 1 where it is not, 3 where the server gave no verdict.",
		Example: `
			mintmark verify --key-file key

			# In a pipeline: may this token deploy?
			mintmark verify --from servicetoken/ci-deploy --permission deploy:write

			# A JWT
			mintmark token --key-file key | mintmark verify --audience https://api.example.com`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	o.server.add(c.Flags())
	o.key.add(c.Flags(), "key or JWT")
	c.Flags().StringArrayVar(&o.permissions, "permission", nil, "Permissions it must hold, between commas or spaces.")
	c.Flags().StringArrayVar(&o.audience, "audience", nil, "Audiences, of which it must be for one.")
	c.Flags().StringVarP(&o.output, "output", "o", "", "Output format: json or yaml.")
	return c
}

// verdict is what verify prints.
type verdict struct {
	Accepted bool `json:"accepted"`
	// Class of the refusal: unauthenticated or forbidden.
	Class     string          `json:"class,omitempty"`
	Detail    string          `json:"detail,omitempty"`
	Requested []string        `json:"requested,omitempty"`
	Profile   json.RawMessage `json:"profile,omitempty"`
}

// profile is the answer of GET /api/auth/profile.
type profile struct {
	Subject     string     `json:"subject"`
	KeyID       string     `json:"key_id"`
	Kind        string     `json:"kind"`
	Namespace   string     `json:"namespace"`
	Name        string     `json:"name"`
	Class       string     `json:"credential_class"`
	Version     int64      `json:"version"`
	Prefix      string     `json:"prefix"`
	Permissions string     `json:"permissions"`
	Roles       string     `json:"roles"`
	IsAdmin     bool       `json:"is_admin"`
	Method      string     `json:"method"`
	ExpiresAt   *time.Time `json:"expires_at"`
	Audience    []string   `json:"audience"`
}

func (o *verifyOptions) run(ctx context.Context) error {
	if err := plainFormat(o.output); err != nil {
		return err
	}
	s, err := o.connect(&o.server)
	if err != nil {
		return err
	}
	key, err := o.key.read(ctx, o.app)
	if err != nil {
		return err
	}
	who, err := s.call(ctx, http.MethodGet, "/api/auth/profile", nil, key, nil)
	if err != nil {
		return err
	}
	if who.status != http.StatusOK {
		return o.refused(who, nil)
	}
	var p profile
	if err := json.Unmarshal(who.body, &p); err != nil || p.Name == "" {
		return unanswered("%s did not answer with a profile: is it Mintmark's server?", s.base)
	}
	if needed := words(o.permissions); len(needed) > 0 || len(o.audience) > 0 {
		may, err := s.call(ctx, http.MethodGet, "/forward-auth", url.Values{"permission": needed, "audience": words(o.audience)}, key, nil)
		if err != nil {
			return err
		}
		if may.status != http.StatusOK {
			return o.refused(may, who.body)
		}
	}
	if o.output != "" {
		return o.printPlain(verdict{Accepted: true, Requested: words(o.permissions), Profile: who.body}, o.output)
	}
	o.describe(p)
	return nil
}

// refused prints the "no" where output is for machines, and gives its error.
func (o *verifyOptions) refused(r answer, profile json.RawMessage) error {
	err := refusal(r)
	var exit *exitError
	if o.output == "" || errors.As(err, &exit) {
		return err
	}
	class := "unauthenticated"
	if r.status == http.StatusForbidden {
		class = "forbidden"
	}
	if printErr := o.printPlain(verdict{
		Class: class, Detail: printable(r.reason()), Requested: words(o.permissions), Profile: profile,
	}, o.output); printErr != nil {
		return printErr
	}
	return &exitError{code: 1}
}

func (o *verifyOptions) describe(p profile) {
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(o.Out, "%-14s%s\n", label+":", printable(text))
		}
	}
	line("Accepted", "yes, as "+map[string]string{"jwt": "a JWT"}[p.Method]+map[string]string{"key": "a key"}[p.Method])
	line("Credential", fmt.Sprintf("%s %s/%s", p.Kind, p.Namespace, p.Name))
	line("UID", p.KeyID)
	line("Class", p.Class)
	line("Version", fmt.Sprint(p.Version))
	line("Prefix", p.Prefix)
	line("Permissions", permissionsInWords(p.Permissions, p.IsAdmin))
	line("Roles", p.Roles)
	line("Audience", strings.Join(p.Audience, " "))
	if p.ExpiresAt != nil {
		line("Expires", p.ExpiresAt.UTC().Format(time.RFC3339))
	} else {
		line("Expires", "Never")
	}
	if needed := words(o.permissions); len(needed) > 0 {
		line("Allowed", strings.Join(needed, " "))
	}
}
