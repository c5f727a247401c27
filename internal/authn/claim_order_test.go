package authn

import (
	"testing"
	"time"
)

func TestWhatWasMintedKeepsADigestThatSomebodyDeclares(t *testing.T) {
	x := New(Config{})
	claimant := func(uid string, created int64, declared []string) *holder {
		x.Apply(Live{UID: uid, Created: time.Unix(created, 0), External: declared}, nil)
		h := x.holders.Get(uid)
		x.Reset()
		return h
	}
	minted, declared := claimant("b", 200, nil), claimant("a", 100, []string{})
	if !minted.older(declared) || declared.older(minted) {
		t.Error("an older credential takes over a minted value by declaring its digest")
	}
	for name, pair := range map[string][2]*holder{
		"of two minted ones the older":           {claimant("b", 100, nil), claimant("a", 200, nil)},
		"of two declared ones the older":         {claimant("b", 100, []string{}), claimant("a", 200, []string{})},
		"of two of one age the one of lower UID": {claimant("a", 100, nil), claimant("b", 100, nil)},
	} {
		if !pair[0].older(pair[1]) || pair[1].older(pair[0]) {
			t.Errorf("%s does not keep it", name)
		}
	}
}
