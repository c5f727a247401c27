package audit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Spool keeps batches on disk, in order, for as long as the store does not take them.
// Every batch is on the disk when Append returns. One goroutine appends, one reads.
//
// It is a directory of segments, numbered files of records: the length and the
// CRC-32C of a batch, four bytes each in big endian, and the batch in CBOR. A record cut
// short by a crash was never acknowledged; it is left out, and everything before it
// stands.
type Spool struct {
	dir   string
	limit int64

	mu       sync.Mutex
	segments []segment // oldest first
	size     int64
	batches  int64
	writing  *os.File // the last of segments; nil before the first append
	damaged  int64
	offset   int64 // read of the oldest segment
}

type segment struct {
	path    string
	number  uint64
	size    int64
	batches int64
}

const (
	segmentSuffix = ".spool"
	segmentDigits = "%020d"
	segmentSize   = 16 << 20
	recordHeader  = 8
	maxRecord     = 64 << 20
	spoolDirMode  = 0o700
	segmentMode   = 0o600
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrSpoolFull says that the spool has reached its limit.
var ErrSpoolFull = errors.New("the spool is full: make the store available again, or raise --audit-spool-max-bytes")

// OpenSpool opens the spool in a directory, which it makes where there is none, with
// what an earlier process left there. A limit of 0 is none.
func OpenSpool(dir string, limit int64) (*Spool, error) {
	if err := os.MkdirAll(dir, spoolDirMode); err != nil {
		return nil, fmt.Errorf("the spool of the audit log: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the spool of the audit log: %w", err)
	}
	s := &Spool{dir: dir, limit: limit}
	for _, entry := range entries {
		var number uint64
		name, ok := strings.CutSuffix(entry.Name(), segmentSuffix)
		if !ok || !entry.Type().IsRegular() {
			continue
		}
		if _, err := fmt.Sscanf(name, segmentDigits, &number); err != nil {
			continue
		}
		found := segment{path: filepath.Join(dir, entry.Name()), number: number}
		if err := s.measure(&found); err != nil {
			return nil, err
		}
		if found.batches == 0 {
			if err := os.Remove(found.path); err != nil {
				return nil, fmt.Errorf("the spool of the audit log: %w", err)
			}
			continue
		}
		s.segments = append(s.segments, found)
		s.size += found.size
		s.batches += found.batches
	}
	slices.SortFunc(s.segments, func(a, b segment) int {
		if a.number < b.number {
			return -1
		}
		return 1
	})
	return s, nil
}

// measure finds how much of a segment is whole.
func (s *Spool) measure(found *segment) error {
	file, err := os.Open(found.path)
	if err != nil {
		return fmt.Errorf("the spool of the audit log: %w", err)
	}
	defer file.Close()
	reader := bufio.NewReaderSize(file, 1<<20)
	for {
		body, err := readRecord(reader)
		switch {
		case err == nil:
			found.size += recordHeader + int64(len(body))
			found.batches++
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errTorn):
			s.damaged++
			return nil
		default:
			return fmt.Errorf("reading %s: %w", found.path, err)
		}
	}
}

var errTorn = errors.New("a record is cut short or damaged")

// readRecord gives the next record's body; io.EOF at the end.
func readRecord(r io.Reader) ([]byte, error) {
	var header [recordHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errTorn
		}
		return nil, err
	}
	length := binary.BigEndian.Uint32(header[:4])
	if length == 0 || length > maxRecord {
		return nil, errTorn
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errTorn
		}
		return nil, err
	}
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(header[4:]) {
		return nil, errTorn
	}
	return body, nil
}

// Append writes a batch and waits until it is on the disk. A batch that does not fit
// is not written: ErrSpoolFull.
func (s *Spool) Append(b *Batch) error {
	body, err := b.marshal()
	if err != nil {
		return err
	}
	if len(body) > maxRecord {
		return fmt.Errorf("a batch of %d bytes is too long for the spool", len(body))
	}
	record := make([]byte, recordHeader, recordHeader+len(body))
	binary.BigEndian.PutUint32(record[:4], uint32(len(body)))
	binary.BigEndian.PutUint32(record[4:], crc32.Checksum(body, castagnoli))
	record = append(record, body...)

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit > 0 && s.size+int64(len(record)) > s.limit {
		return ErrSpoolFull
	}
	if s.writing == nil || s.last().size >= segmentSize {
		if err := s.begin(); err != nil {
			return err
		}
	}
	if err := s.write(record); err != nil {
		return err
	}
	s.last().size += int64(len(record))
	s.last().batches++
	s.size += int64(len(record))
	s.batches++
	return nil
}

func (s *Spool) last() *segment { return &s.segments[len(s.segments)-1] }

// write appends a record to the last segment. What it cannot write whole it takes away
// again, or begins another segment, so that nothing follows half a record.
func (s *Spool) write(record []byte) error {
	_, err := s.writing.Write(record)
	if err == nil {
		err = s.writing.Sync()
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("writing the spool of the audit log: %w", err)
	if undo := s.writing.Truncate(s.last().size); undo == nil {
		if _, undo = s.writing.Seek(s.last().size, io.SeekStart); undo == nil {
			return err
		}
	}
	_ = s.writing.Close()
	s.writing = nil
	return err
}

// begin begins a segment.
func (s *Spool) begin() error {
	if s.writing != nil {
		_ = s.writing.Close() // synced at every write
		s.writing = nil
	}
	next := segment{number: 1}
	if len(s.segments) > 0 {
		next.number = s.last().number + 1
	}
	next.path = filepath.Join(s.dir, fmt.Sprintf(segmentDigits, next.number)+segmentSuffix)
	file, err := os.OpenFile(next.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, segmentMode)
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("writing the spool of the audit log: %w", err)
	}
	s.writing = file
	s.segments = append(s.segments, next)
	return nil
}

// syncDir makes a file's coming or going durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Oldest gives the oldest batch; nil where there is none. It stays until Drop.
func (s *Spool) Oldest() (*Batch, error) {
	for {
		s.mu.Lock()
		if len(s.segments) == 0 || s.batches == 0 {
			s.mu.Unlock()
			return nil, nil
		}
		oldest, offset := s.segments[0], s.offset
		s.mu.Unlock()
		if offset >= oldest.size {
			if err := s.discard(); err != nil {
				return nil, err
			}
			continue
		}
		return readAt(oldest.path, offset)
	}
}

func readAt(path string, offset int64) (*Batch, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the spool of the audit log: %w", err)
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	body, err := readRecord(bufio.NewReaderSize(file, 1<<18))
	if err != nil {
		return nil, fmt.Errorf("reading %s at %d: %w", path, offset, err)
	}
	b, err := unmarshalBatch(body)
	if err != nil {
		return nil, fmt.Errorf("reading %s at %d: %w", path, offset, err)
	}
	return b, nil
}

// Drop lets go of the oldest batch, which the store has now. After a crash it may be
// there again: a store takes a batch in once.
func (s *Spool) Drop() error { return s.letGo(0) }

// Skip lets go of the oldest batch, which cannot be read.
func (s *Spool) Skip() error { return s.letGo(1) }

func (s *Spool) letGo(damaged int64) error {
	s.mu.Lock()
	if len(s.segments) == 0 || s.batches == 0 {
		s.mu.Unlock()
		return nil
	}
	s.damaged += damaged
	oldest := &s.segments[0]
	length, err := recordLength(oldest.path, s.offset)
	if err != nil || s.offset+length > oldest.size {
		length = oldest.size - s.offset // the rest of the segment cannot be read
	}
	s.offset += length
	oldest.batches = max(oldest.batches-1, 0)
	s.batches--
	if s.offset >= oldest.size && oldest.batches > 0 { // went with it
		s.damaged += oldest.batches
		s.batches -= oldest.batches
		oldest.batches = 0
	}
	done := s.offset >= oldest.size
	s.mu.Unlock()
	if done {
		return s.discard()
	}
	return nil
}

func recordLength(path string, offset int64) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var header [recordHeader]byte
	if _, err := file.ReadAt(header[:], offset); err != nil {
		return 0, err
	}
	return recordHeader + int64(binary.BigEndian.Uint32(header[:4])), nil
}

// discard removes the oldest segment, of which everything has been read.
func (s *Spool) discard() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.segments) == 0 || s.offset < s.segments[0].size {
		return nil // somebody appended to it meanwhile
	}
	oldest := s.segments[0]
	if len(s.segments) == 1 && s.writing != nil {
		_ = s.writing.Close() // synced at every write
		s.writing = nil
	}
	if err := os.Remove(oldest.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the spool of the audit log: %w", err)
	}
	s.size -= oldest.size
	s.offset = 0
	s.segments = s.segments[1:]
	return nil
}

// Len tells how much the spool holds, and how many records were found damaged.
func (s *Spool) Len() (batches, bytes, damaged int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.batches, s.size - s.offset, s.damaged
}

// Close closes the file written to. What the spool holds stays.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing == nil {
		return nil
	}
	err := s.writing.Close()
	s.writing = nil
	return err
}
