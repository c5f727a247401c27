package storetest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mintmark-dev/mintmark/internal/store"
)

func tombstone(i int) store.Tombstone {
	return store.Tombstone{
		Digest: []byte(fmt.Sprintf("digest %025d", i)), Pepper: "p1", UID: "uid-" + strconv.Itoa(i), Namespace: "payments", Version: 3, Reason: "leaked",
		RevokedAt: noon, Until: noon.AddDate(0, 0, i),
	}
}

func tombstones(t *testing.T, open Open) {
	s := open(t)
	var want []store.Tombstone
	for i := range 25 {
		want = append(want, tombstone(i+1))
	}
	want[24].Until = time.Time{}
	must(t, s.PutTombstones(t.Context(), want[:20]))
	must(t, s.PutTombstones(t.Context(), want[10:])) // some again
	var got []store.Tombstone
	after := int64(0)
	for {
		page, err := s.Tombstones(t.Context(), after, 10)
		must(t, err)
		if len(page) == 0 {
			break
		}
		for _, stone := range page {
			if stone.Number <= after {
				t.Fatalf("number %d comes after %d", stone.Number, after)
			}
			after = stone.Number
		}
		got = append(got, page...)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(store.Tombstone{}, "Number")); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
	if _, err := s.Retain(t.Context(), time.Time{}, noon.AddDate(0, 0, 10).Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	left, err := s.Tombstones(t.Context(), 0, 100)
	must(t, err)
	if len(left) != 15 {
		t.Errorf("%d are left after ten have expired, want 15", len(left))
	}
}

func deniedTokens(t *testing.T, open Open) {
	s := open(t)
	tokens := []store.DeniedToken{{Key: []byte("a"), Namespace: "payments", Until: noon.Add(time.Minute)}, {Key: []byte("b"), Until: noon.Add(time.Hour)}}
	must(t, s.DenyTokens(t.Context(), tokens))
	must(t, s.DenyTokens(t.Context(), tokens[1:]))
	got, err := s.DeniedTokens(t.Context(), 0, noon, 10)
	must(t, err)
	if diff := cmp.Diff(tokens, got, cmpopts.IgnoreFields(store.DeniedToken{}, "Number")); diff != "" {
		t.Errorf("it differs:\n%s", diff)
	}
	if got, err = s.DeniedTokens(t.Context(), got[0].Number, noon, 10); err != nil || len(got) != 1 || string(got[0].Key) != "b" {
		t.Errorf("after the first: %+v, %v", got, err)
	}
	if got, err = s.DeniedTokens(t.Context(), 0, noon.Add(2*time.Minute), 10); err != nil || len(got) != 1 {
		t.Errorf("after one has expired: %+v, %v", got, err)
	}
}

func waiting(t *testing.T, open Open) {
	s, other := open(t), open(t)
	for name, put := range map[string]func(i int) error{
		"a tombstone": func(i int) error { return other.PutTombstones(t.Context(), []store.Tombstone{tombstone(i)}) },
		"a token": func(i int) error {
			return other.DenyTokens(t.Context(), []store.DeniedToken{{Key: []byte(strconv.Itoa(i)), Until: noon}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan error, 1)
			go func() { told <- s.AwaitDenied(t.Context()) }()
			deadline := time.After(10 * time.Second)
			for i := 1; ; i++ { // until it listens
				must(t, put(i))
				select {
				case err := <-told:
					must(t, err)
					return
				case <-deadline:
					t.Fatal("it was not told")
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AwaitDenied(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}
