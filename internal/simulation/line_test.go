package simulation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// line is a connection to the database that saves ways: the time that the database is to take for now, a begin, and a
// commit of what has not failed go along with the statement that comes next. Their answers are dropped; a begin and a
// commit are answered at once.
type line struct {
	net.Conn
	d *database

	mu       sync.Mutex
	reading  bool
	prepared bool              // what is sent by the line itself
	held     bool              // a begin
	ended    bool              // held is a commit, too, which comes first
	status   byte              // of the transaction, as last heard
	kept     map[string]string // statements without arguments that are prepared, and their names
	drop     int               // so many answers,
	until    byte              // which end with this message
	in, out  []byte            // what came while some are to be dropped, and what of it is to be handed on
}

// dial has a connection's configuration make lines.
func (d *database) dial(config *pgx.ConnConfig) {
	config.AfterConnect = stayTogether
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if local, ok := conn.(*net.UnixConn); ok {
			if conn, err = newWire(local); err != nil {
				return nil, err
			}
		}
		return &line{Conn: conn, d: d, kept: map[string]string{}}, nil
	}
}

var (
	begin     = encode(&pgproto3.Query{String: "begin"})
	commit    = encode(&pgproto3.Query{String: "commit"})
	committed = encode(&pgproto3.CommandComplete{CommandTag: []byte("COMMIT")}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
	ready     = encode(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	begun     = encode(&pgproto3.CommandComplete{CommandTag: []byte("BEGIN")}, &pgproto3.ReadyForQuery{TxStatus: 'T'})
)

func encode(messages ...interface {
	Encode(dst []byte) ([]byte, error)
}) (all []byte) {
	for _, m := range messages {
		all, _ = m.Encode(all) // what fails is a message of over a gigabyte
	}
	return all
}

// Write sends with a statement what has to come before it.
func (l *line) Write(b []byte) (int, error) {
	size := len(b)
	statement := strings.IndexByte("BPQ", b[0]) >= 0
	if open := l.d.open; open != nil && (open != l || !statement) {
		if err := open.flush(); err != nil {
			return 0, err
		}
	}
	l.mu.Lock()
	switch {
	case l.reading:
	case slices.Equal(b, begin):
		l.held, l.out = true, append(l.out, begun...)
		l.mu.Unlock()
		return size, nil
	case slices.Equal(b, commit) && l.status == 'T' && !l.held:
		l.ended, l.status, l.d.open = true, 'I', l
		l.out = append(l.out, committed...)
		l.mu.Unlock()
		return size, nil
	}
	if b[0] == 'Q' {
		b = l.extended(b)
	}
	var first []byte
	if statement && (l.held || l.ended || !l.d.clock.Equal(l.d.told)) {
		first = l.before(b[0] == 'Q')
	}
	l.mu.Unlock()
	if first == nil {
		_, err := l.Conn.Write(b)
		return size, err
	}
	_, err := l.Conn.Write(append(first, b...))
	return size, err
}

// extended is a change or a commit that comes without arguments, and so by the simple protocol, as a statement that is
// prepared once. The rest stays as it is.
func (l *line) extended(b []byte) []byte {
	sql := string(b[5 : len(b)-1])
	word, _, _ := strings.Cut(strings.TrimSpace(sql), " ")
	if word != "commit" && word != "update" && word != "delete" && word != "insert" || strings.Contains(sql, ";") || len(b) != 1+int(binary.BigEndian.Uint32(b[1:])) {
		return b
	}
	var all []byte
	name, known := l.kept[sql]
	if !known {
		name = fmt.Sprint("kept", len(l.kept))
		l.kept[sql] = name
		all = encode(&pgproto3.Parse{Name: name, Query: sql})
	}
	return append(all, encode(&pgproto3.Bind{PreparedStatement: name}, &pgproto3.Execute{}, &pgproto3.Sync{})...)
}

// before is a begin that was held back, and what sets the database's clock. Before a statement of the simple protocol it
// has to be closed by a Sync, which costs an answer.
func (l *line) before(simple bool) (first []byte) {
	first = l.prepare()
	l.drop, l.until = 0, 'C'
	if l.ended {
		first = append(first, encode(&pgproto3.Bind{PreparedStatement: "commit"}, &pgproto3.Execute{})...)
		l.ended, l.d.open = false, nil
		l.drop++
	}
	if l.held {
		first = append(first, encode(&pgproto3.Bind{PreparedStatement: "begin"}, &pgproto3.Execute{})...)
		l.held = false
		l.drop++
	}
	if !l.d.clock.Equal(l.d.told) {
		micros := binary.BigEndian.AppendUint64(nil, uint64(l.d.clock.UnixMicro()))
		first = append(first, encode(&pgproto3.Bind{PreparedStatement: "clock", ParameterFormatCodes: []int16{1}, Parameters: [][]byte{micros}}, &pgproto3.Execute{})...)
		l.d.told = l.d.clock
		l.drop++
	}
	if simple {
		first = append(first, encode(&pgproto3.Sync{})...)
		l.drop, l.until = 1, 'Z'
	}
	return first
}

// prepare has what the line itself sends prepared, once.
func (l *line) prepare() []byte {
	if l.prepared {
		return nil
	}
	l.prepared = true
	return encode(&pgproto3.Parse{Name: "begin", Query: "begin"}, &pgproto3.Parse{Name: "commit", Query: "commit"},
		&pgproto3.Parse{Name: "clock", Query: "select setval('sim.clock', $1)", ParameterOIDs: []uint32{pgtype.Int8OID}})
}

// flush commits what has yet to be: somebody else is to see it.
func (l *line) flush() error {
	l.ended, l.d.open = false, nil
	read := l.Conn.Read
	if w, ok := l.Conn.(*wire); ok {
		w.mu.Lock()
		defer w.mu.Unlock()
		read = w.read
	}
	_, err := l.Conn.Write(append(l.prepare(), encode(&pgproto3.Bind{PreparedStatement: "commit"}, &pgproto3.Execute{}, &pgproto3.Sync{})...))
	var answer []byte
	for buffer := make([]byte, 512); err == nil && statusAt(answer) == 0; {
		var n int
		n, err = read(buffer)
		answer = append(answer, buffer[:n]...)
	}
	if err == nil && !bytes.HasSuffix(answer, committed) {
		err = fmt.Errorf("commit: %q", answer)
	}
	return err
}

// statusAt is the transaction's status at the end of an answer, 0 where that is still to come.
func statusAt(answer []byte) byte {
	at := len(answer) - 1
	if !bytes.HasSuffix(answer[:max(at, 0)], ready[:len(ready)-1]) {
		return 0
	}
	return answer[at]
}

// Close commits what has yet to be.
func (l *line) Close() error {
	if l.ended {
		_ = l.flush()
	}
	return l.Conn.Close()
}

// Read hands on what is not dropped.
func (l *line) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.out) == 0 {
		l.reading = true
		l.mu.Unlock()
		n, err := l.Conn.Read(b)
		l.mu.Lock()
		l.reading = false
		l.status = cmp.Or(statusAt(b[:n]), l.status)
		if l.drop == 0 || err != nil {
			return n, err
		}
		l.in = append(l.in, b[:n]...)
		l.sift()
	}
	n := copy(b, l.out)
	l.out = l.out[n:]
	return n, nil
}

// sift drops answers from what has come in, and lets what comes after them out.
func (l *line) sift() {
	const head = 5 // a message's kind and length
	for l.drop > 0 && len(l.in) >= head {
		kind, size := l.in[0], 1+int(binary.BigEndian.Uint32(l.in[1:]))
		if len(l.in) < size {
			return
		}
		if kind == 'E' { // a transaction that has failed: the database has not heard of the time
			l.d.told = time.Time{}
			if l.until == 'C' { // nor of the statement: it is the answer to that
				l.drop = 0
				break
			}
		}
		if kind == l.until {
			l.drop--
		}
		l.in = l.in[size:]
	}
	if l.drop == 0 {
		l.out, l.in = l.in, nil
	}
}
