package disk

import (
	"fmt"
	"regexp"
	"strings"
)

// maxKeySegment keeps "s3://<bucket>/<user>/<disk>/<name>" within the 256 characters of a tag's value.
const maxKeySegment = 60

// ListingKey returns the object key of a disk's listing, "<user>/<disk>/<name>". Whatever the names hold, the key
// has three segments that mean the same to S3, a browser and a shell: what is not plain is percent-encoded, what
// is too long is cut and keeps a hash. Different names give different keys.
func ListingKey(k Key, name string) string {
	return keySegment(k.User) + "/" + keySegment(k.Name) + "/" + keySegment(name)
}

func keySegment(s string) string {
	if s == "" {
		return "_"
	}
	special := strings.Trim(s, "._") == "" // "." and ".." are directories, "_" stands for the empty name
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; plain(c) && !special {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	encoded := b.String()
	if len(encoded) <= maxKeySegment {
		return encoded
	}
	mark := "~" + shortHash(s)
	head := encoded[:maxKeySegment-len(mark)]
	if i := strings.LastIndexByte(head, '%'); i > len(head)-3 {
		head = head[:i] // not half an escape
	}
	return head + mark
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("@._-", c) >= 0
}

var duSize = regexp.MustCompile(`^([0-9]+(?:[.,][0-9]+)?)([KMGTPE]?)$`)

// SizeText reads what `du -sh` wrote ("1.2G\t/home/dev") and returns the size as the platform keeps it ("1.2G"),
// or "" where the output does not begin with one.
func SizeText(du string) string {
	fields := strings.Fields(du)
	if len(fields) == 0 {
		return ""
	}
	m := duSize.FindStringSubmatch(fields[0])
	if m == nil {
		return ""
	}
	return strings.Replace(m[1], ",", ".", 1) + m[2] // some locales write 1,2G
}
