package middleware

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// question is one check call.
type question struct {
	call     Call
	action   string
	resource *Resource
}

// checkBody is the body of POST /api/v1/auth/check.
type checkBody struct {
	Token       string      `json:"token,omitempty"`
	Action      string      `json:"action,omitempty"`
	Permissions []string    `json:"permissions,omitempty"`
	Audience    []string    `json:"audience,omitempty"`
	Resource    *Resource   `json:"resource,omitempty"`
	Request     checkedCall `json:"request"`
}

type checkedCall struct {
	Method    string `json:"method,omitempty"`
	Host      string `json:"host,omitempty"`
	Path      string `json:"path,omitempty"`
	UserAgent string `json:"userAgent,omitempty"`
	ClientIP  string `json:"clientIP,omitempty"`
}

// checkAnswer is its answer.
type checkAnswer struct {
	Allowed       bool       `json:"allowed"`
	Authenticated bool       `json:"authenticated"`
	Subject       string     `json:"subject"`
	KeyID         string     `json:"key_id"`
	Version       int64      `json:"version"`
	Permissions   string     `json:"permissions"`
	Roles         string     `json:"roles"`
	IsAdmin       bool       `json:"is_admin"`
	ExpiresAt     *time.Time `json:"expires_at"`
}

// verdict is an answer as it is kept: who it is, or why not.
type verdict struct {
	identity *Identity
	err      error // ErrUnauthenticated or ErrForbidden
	until    time.Time
}

// refusedFor bounds how long a refusal is used again, so that a credential that has just
// been made is known soon.
const refusedFor = time.Second

// checker asks the server.
type checker struct {
	config Config
	salt   [32]byte // of the keys of both caches: they tell nothing of the credentials

	mu       sync.Mutex
	accepted map[[sha256.Size]byte]verdict
	refused  map[[sha256.Size]byte]verdict
}

func newChecker(c Config) *checker {
	k := &checker{config: c, accepted: map[[sha256.Size]byte]verdict{}, refused: map[[sha256.Size]byte]verdict{}}
	_, _ = rand.Read(k.salt[:]) // never fails (crypto/rand)
	return k
}

// ask gives the server's answer, or the one it gave a moment ago.
func (k *checker) ask(ctx context.Context, q question) (*Identity, error) {
	body := checkBody{
		Action: q.action, Permissions: q.call.Permissions, Audience: k.config.Audiences, Resource: q.resource,
		Request: checkedCall{Method: q.call.Method, Host: q.call.Host, Path: q.call.Path, UserAgent: q.call.UserAgent},
	}
	if k.config.Token != nil && q.call.ClientIP.IsValid() {
		body.Request.ClientIP = q.call.ClientIP.String()
	}
	id, err := k.key(q.call.Credential, &body)
	if err != nil {
		return nil, ErrUnavailable
	}
	now := k.config.Now()
	if known, ok := k.recall(id, now); ok {
		return known.identity, known.err
	}
	found, err := k.send(ctx, q.call.Credential, &body)
	if err != nil {
		k.config.Log.WarnContext(ctx, "Mintmark cannot be asked", "error", err.Error())
		return nil, ErrUnavailable
	}
	k.keep(id, found, now)
	return found.identity, found.err
}

// key is a digest of the whole question.
func (k *checker) key(credential string, body *checkBody) (id [sha256.Size]byte, err error) {
	text, err := json.Marshal(body)
	if err != nil {
		return id, err
	}
	mac := hmac.New(sha256.New, k.salt[:])
	fmt.Fprintf(mac, "%d:%s", len(credential), credential)
	mac.Write(text)
	mac.Sum(id[:0])
	return id, nil
}

func (k *checker) recall(id [sha256.Size]byte, now time.Time) (verdict, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, cache := range []map[[sha256.Size]byte]verdict{k.accepted, k.refused} {
		if known, ok := cache[id]; ok {
			if now.Before(known.until) {
				return known, true
			}
			delete(cache, id)
		}
	}
	return verdict{}, false
}

// keep remembers an answer. Refusals have a table of their own, so that whoever tries
// many credentials drives out no good one.
func (k *checker) keep(id [sha256.Size]byte, v verdict, now time.Time) {
	if k.config.CacheTTL < 0 {
		return
	}
	cache := k.accepted
	v.until = now.Add(k.config.CacheTTL)
	if v.err != nil {
		cache, v.until = k.refused, now.Add(min(k.config.CacheTTL, refusedFor))
	} else if e := v.identity.Expires; !e.IsZero() && e.Before(v.until) {
		v.until = e
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(cache) >= k.config.CacheSize {
		evict(cache, now)
	}
	cache[id] = v
}

// evict makes room: it looks at a few entries, drops those that are over, and any one
// where none is.
func evict(cache map[[sha256.Size]byte]verdict, now time.Time) {
	looked, dropped := 0, false
	for id, v := range cache {
		if !now.Before(v.until) {
			delete(cache, id)
			dropped = true
		}
		if looked++; looked >= 16 {
			break
		}
	}
	if dropped {
		return
	}
	for id := range cache {
		delete(cache, id)
		return
	}
}

const maxAnswer = 1 << 20

// send asks. An error means that there is no answer; the verdict is one.
func (k *checker) send(ctx context.Context, credential string, body *checkBody) (verdict, error) {
	own := credential
	if k.config.Token != nil {
		var err error
		if own, err = k.config.Token(ctx); err != nil {
			return verdict{}, fmt.Errorf("the service's own credential: %w", err)
		}
		body.Token = credential
	}
	text, err := json.Marshal(body)
	if err != nil {
		return verdict{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, k.config.ServerURL+"/api/v1/auth/check", bytes.NewReader(text))
	if err != nil {
		return verdict{}, err
	}
	req.Header.Set("Authorization", "Bearer "+own)
	req.Header.Set("Content-Type", "application/json")
	resp, err := k.config.HTTPClient.Do(req)
	if err != nil {
		return verdict{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	read, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return verdict{}, err
	case k.config.Token == nil && resp.StatusCode == http.StatusUnauthorized:
		return verdict{err: ErrUnauthenticated}, nil
	case k.config.Token == nil && resp.StatusCode == http.StatusForbidden:
		return verdict{err: ErrForbidden}, nil
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return verdict{}, fmt.Errorf("%s answers %s: the service's own credential has to be good and to hold mintmark:check", req.URL, resp.Status)
	case resp.StatusCode != http.StatusOK:
		return verdict{}, fmt.Errorf("%s answers %s", req.URL, resp.Status)
	}
	var answer checkAnswer
	if err := json.Unmarshal(read, &answer); err != nil {
		return verdict{}, fmt.Errorf("%s: the answer cannot be read", req.URL)
	}
	return answer.verdict()
}

func (a *checkAnswer) verdict() (verdict, error) {
	switch {
	case !a.Authenticated:
		return verdict{err: ErrUnauthenticated}, nil
	case !a.Allowed:
		return verdict{err: ErrForbidden}, nil
	case a.Subject == "" || a.KeyID == "":
		return verdict{}, fmt.Errorf("the answer allows and does not say whom")
	}
	id := &Identity{
		Subject: a.Subject, UID: a.KeyID, Version: a.Version, Permissions: strings.Fields(a.Permissions), Roles: strings.Fields(a.Roles), Admin: a.IsAdmin,
	}
	if a.ExpiresAt != nil {
		id.Expires = *a.ExpiresAt
	}
	return verdict{identity: id}, nil
}
