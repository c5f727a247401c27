package oauth

// Forget forgets every token verified so far.
func (i *Issuer) Forget() { clear(i.seen.places) }

// CheckSignature checks a signature by one of the published keys, as Verify does.
func (i *Issuer) CheckSignature(alg, kid, signed string, signature []byte) error {
	return i.checkPublished(header{alg: alg, kid: kid, typ: tokenType}, signed, signature, nil)
}
