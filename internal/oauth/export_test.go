package oauth

// Forget forgets every token verified so far.
func (i *Issuer) Forget() { clear(i.seen.places) }

// CheckSignature checks a signature by one of the published keys, as Verify does.
func (i *Issuer) CheckSignature(alg, kid, signed string, signature []byte) error {
	return i.checkPublished(header{alg: alg, kid: kid, typ: tokenType}, signed, signature, nil)
}

// EncodeClaims gives the claims as they are signed.
func EncodeClaims(c *Claims) []byte { return c.appendJSON(nil) }

// DecodeClaims reads the payload of a token.
func DecodeClaims(payload []byte) (Claims, error) { return decodeClaims(payload) }

// Occupy takes every turn to check a signature until the function it gives is called.
func (i *Issuer) Occupy() (free func()) {
	for range cap(i.checks) {
		i.checks <- struct{}{}
	}
	return func() {
		for range cap(i.checks) {
			i.checks.leave()
		}
	}
}
