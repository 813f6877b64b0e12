package kube

import (
	"bytes"
	"sync"
)

// kept is a writer that keeps the first bytes and drops the rest. It may still be written to after somebody has given
// up waiting and taken what there is.
type kept struct {
	mu    sync.Mutex
	limit int
	buf   bytes.Buffer
	more  bool
}

func newKept(limit int) *kept { return &kept{limit: max(limit, 1)} }

// Write never fails: the other end must not be stopped by our wanting no more.
func (k *kept) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	room := min(k.limit-k.buf.Len(), len(p))
	k.buf.Write(p[:room])
	k.more = k.more || room < len(p)
	return len(p), nil
}

func (k *kept) bytes() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return bytes.Clone(k.buf.Bytes())
}

func (k *kept) truncated() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.more
}
