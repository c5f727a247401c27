package authn

import (
	"testing"
	"time"
)

func TestWhatWasMintedKeepsADigestThatSomebodyDeclares(t *testing.T) {
	identity := func(uid string, created int64, declared []string) *Identity {
		return newIdentity(Live{UID: uid, Created: time.Unix(created, 0), External: declared})
	}
	minted, declared := identity("b", 200, nil), identity("a", 100, []string{})
	if !minted.older(declared) || declared.older(minted) {
		t.Error("an older credential takes over a minted value by declaring its digest")
	}
	for name, pair := range map[string][2]*Identity{
		"of two minted ones the older":           {identity("b", 100, nil), identity("a", 200, nil)},
		"of two declared ones the older":         {identity("b", 100, []string{}), identity("a", 200, []string{})},
		"of two of one age the one of lower UID": {identity("a", 100, nil), identity("b", 100, nil)},
	} {
		if !pair[0].older(pair[1]) || pair[1].older(pair[0]) {
			t.Errorf("%s does not keep it", name)
		}
	}
}
