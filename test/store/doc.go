// Package store measures the store on as many events as a disk holds, see `make bench-store`.
package store
