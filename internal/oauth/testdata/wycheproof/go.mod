// The test vectors of Wycheproof, for internal/oauth's tests. They are read from the
// module cache.
module github.com/mintmark-dev/mintmark/internal/oauth/testdata/wycheproof

go 1.26.0

require github.com/google/wycheproof v0.0.0-20191219022705-2196000605e4
