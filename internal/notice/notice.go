// Package notice writes what users read in their servers: the warning before the end, the word after an
// out-of-memory kill, and the final notice. Its functions turn values into text and do nothing else.
//
// Whatever comes from a row is shortened and stripped of control characters: a name may be anything.
package notice

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"

	"gpudev.internal/reservation-expiry/internal/reservation"
)

// The files' names, in the home directory of the server's main container.
const (
	Home          = "/home/dev"
	WarningPrefix = "WARN_" // every warning's name begins so: a newer one replaces the older ones
	OOMFile       = "OOM_DETECTED.txt"
	FinalFile     = "RESERVATION_ENDED.txt"
)

// WarningFile returns the name of a level's warning, "WARN_EXPIRES_IN_30MIN.txt".
func WarningFile(level reservation.Level) string {
	return fmt.Sprintf("%sEXPIRES_IN_%dMIN.txt", WarningPrefix, int(level))
}

// Warning says what ends and when, what will be lost and kept, and how to extend. volumes tells whether the server's pod
// has any; deadline is the effective one; now is when the file is written.
func Warning(r reservation.Reservation, volumes bool, deadline, now time.Time) string {
	left := remaining(deadline.Sub(now))
	lost, kept := fate(r, volumes)
	if !r.HasDisk() {
		kept += ": copy what you need elsewhere now"
	}
	return page("This server ends "+left,
		"What ends", what(r),
		"When", utc(deadline)+", "+left,
		"Will be lost", lost,
		"Will be kept", kept,
		"To extend", extend(r),
	) + "\nWritten at " + utc(now) + ". If you have extended since, forget this notice.\n"
}

// OOM says that a container was killed for want of memory: which, when (zero: unknown), and how many kills this
// reservation has seen so far, this one included.
func OOM(r reservation.Reservation, container string, at time.Time, count int) string {
	lost := "all that the container's processes held in memory, and perhaps files it wrote outside " + Home
	if !r.HasDisk() {
		lost = "all that the container's processes held in memory, and perhaps files it wrote"
	}
	when, often := "shortly before this notice was written", "for the first time in this reservation"
	if !at.IsZero() {
		when = utc(at)
	}
	if count > 1 {
		often = fmt.Sprintf("%d times in this reservation so far", count)
	}
	return page("This server ran out of memory",
		"What happened", fmt.Sprintf("container %s needed more main memory than it may have, and the kernel killed it (OOMKilled)", quoted(container)),
		"Where", what(r),
		"When", when,
		"How often", often,
		"What is lost", lost,
		"What goes on", "the reservation, until its end as planned",
		"What helps", "fewer or smaller data loader workers, smaller batches, data mapped from files, or a larger server",
	)
}

// Final is the last word, written before the server stops: what ended, when and why, what is lost and kept. volumes is
// Warning's.
func Final(r reservation.Reservation, volumes bool, endedAt time.Time, reason string) string {
	lost, kept := fate(r, volumes)
	why := clean(reason, 500)
	if why == "" {
		why = "not recorded"
	}
	return page("This reservation has ended and its server stops now",
		"What ended", what(r),
		"When", utc(endedAt),
		"Why", why,
		"Lost", lost,
		"Kept", kept,
	)
}

func what(r reservation.Reservation) string {
	var b strings.Builder
	b.WriteString("reservation ")
	if name := clean(r.Name, 80); name != "" {
		fmt.Fprintf(&b, "%s, ", quoted(name))
	}
	b.WriteString(clean(r.ID, 80))
	if gpu := clean(r.GPUType, 40); gpu != "" && r.GPUCount > 0 {
		fmt.Fprintf(&b, ", %d x %s", r.GPUCount, gpu)
	}
	if r.TotalNodes > 1 {
		fmt.Fprintf(&b, ", node %d of %d", r.NodeIndex+1, r.TotalNodes)
	}
	return b.String()
}

// fate says what is lost and what is kept. Of volumes that nothing names as the disk it promises nothing, either way.
func fate(r reservation.Reservation, volumes bool) (lost, kept string) {
	running := "running processes, all that is in GPU and main memory, and every file "
	switch {
	case r.HasDisk():
		disk := "your disk " + quoted(r.DiskName)
		if r.DiskName == "" {
			disk = "your disk"
		}
		return running + "outside " + Home,
			disk + " with all of " + Home + ": once the server has stopped it is saved as a snapshot, from which your next reservation with this disk starts"
	case volumes:
		return running + "that is not on a volume", "perhaps what is on this server's volumes, though none of them is known to be your disk"
	}
	return "everything: running processes, all that is in memory, and every file, those in " + Home + " too",
		"nothing, for this reservation has no persistent disk"
}

// plainID matches ids that may be pasted into a shell.
var plainID = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9]{0,63}$`)

// extend names the platform's command. A set lasts as long as its master, so that is what a node's user extends.
func extend(r reservation.Reservation) string {
	id, whole := r.ID, ""
	if r.MasterID != "" && r.MasterID != r.ID {
		id, whole = r.MasterID, " (the whole set)"
	}
	if !plainID.MatchString(id) {
		id = "RESERVATION_ID"
	}
	return "gpu-dev edit " + id + " --extend" + whole
}

// remaining rounds down: nobody should count on a minute that is not there.
func remaining(d time.Duration) string {
	switch minutes := int(d / time.Minute); {
	case d <= 0:
		return "now"
	case minutes == 0:
		return "in less than a minute"
	case minutes == 1:
		return "in 1 minute"
	default:
		return fmt.Sprintf("in %d minutes", minutes)
	}
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func quoted(s string) string { return `"` + clean(s, 80) + `"` }

// clean makes one line of at most limit characters out of anything.
func clean(s string, limit int) string {
	s = strings.Map(func(c rune) rune {
		if unicode.IsGraphic(c) && !unicode.IsSpace(c) {
			return c
		}
		return ' ' // control characters, and those that change the direction of writing
	}, s[:min(len(s), 8*limit)])
	s = strings.Join(strings.Fields(s), " ")
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit-1]) + "…"
	}
	return s
}

const width = 100

// page sets a heading and pairs of label and text, wrapped, in two columns.
func page(heading string, pairs ...string) string {
	labels := 0
	for i := 0; i < len(pairs); i += 2 {
		labels = max(labels, len(pairs[i])+2)
	}
	var b strings.Builder
	b.WriteString(strings.ToUpper(heading) + "\n\n")
	for i := 0; i < len(pairs); i += 2 {
		indent := fmt.Sprintf("%-*s", labels, pairs[i]+":")
		for _, line := range wrap(pairs[i+1], width-labels) { //nolint:gosec // pairs come in twos
			b.WriteString(indent + line + "\n")
			indent = strings.Repeat(" ", labels)
		}
	}
	return b.String()
}

func wrap(text string, width int) []string {
	var lines []string
	line, length := "", 0
	for word := range strings.FieldsSeq(text) {
		n := len([]rune(word))
		if line != "" && length+1+n > width {
			lines = append(lines, line)
			line, length = "", 0
		}
		if line != "" {
			line, length = line+" ", length+1
		}
		line, length = line+word, length+n
	}
	return append(lines, line)
}
