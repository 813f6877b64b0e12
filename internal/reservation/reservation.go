// Package reservation decides about reservations: what is overdue, which warning is due, what is stuck, whether a pod
// is missing, and when a sweep must brake. Everything here is a function from values to values. Every `now` is a
// parameter and comes from the database's clock.
//
// What is decided here in Go and executed as SQL in internal/postgres is documented so that both can be compared:
// this package is the specification.
package reservation

// Status is a reservation's status as the platform writes it.
type Status string

// The statuses the platform knows. A row may hold any other word or none; such a row is neither live nor ended.
const (
	Pending   Status = "pending"
	Queued    Status = "queued"
	Preparing Status = "preparing"
	Active    Status = "active"
	Expired   Status = "expired"
	Cancelled Status = "cancelled"
	Failed    Status = "failed"
)

// Live reports whether the reservation waits for its server or has one.
func (s Status) Live() bool {
	switch s {
	case Pending, Queued, Preparing, Active:
		return true
	}
	return false
}

// Ended reports whether the reservation is over for good.
func (s Status) Ended() bool {
	switch s {
	case Expired, Cancelled, Failed:
		return true
	}
	return false
}

// Reservation is what this service needs from a row of the platform's table. Any column may be NULL, absurdly long or
// nonsense: texts and numbers that are NULL are zero here, dates keep their NULL and their infinities.
type Reservation struct {
	ID            string
	UserID        string
	Status        Status
	Name          string
	GPUType       string
	GPUCount      int
	InstanceType  string
	FailureReason string

	CreatedAt        Instant
	LaunchedAt       Instant
	ExpiresAt        Instant
	UpdatedAt        Instant // any write moves it: the platform has a trigger
	FailedAt         Instant
	CancelledAt      Instant
	ReservationEnded Instant

	PodName          string
	NamespaceName    string // column `namespace`
	NodeIP           string
	NodePort         int
	AvailabilityZone string
	DomainName       string
	FQDN             string

	DiskName    string
	EBSVolumeID string

	IsMultinode bool
	MasterID    string // column master_reservation_id
	NodeIndex   int
	TotalNodes  int

	OOMCount     int
	LastOOMAt    Instant
	OOMContainer string

	StatusHistory   []byte // jsonb, nil where NULL
	WarningsSent    []byte // jsonb, nil where NULL
	LastWarningTime int64  // unix seconds, 0 where NULL
}

// HasDisk reports whether the row speaks of a persistent disk.
func (r Reservation) HasDisk() bool { return r.DiskName != "" || r.EBSVolumeID != "" }
