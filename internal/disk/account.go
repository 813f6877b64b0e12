package disk

// Account is an AWS account in one of its regions: where volumes, snapshots and instances are looked for.
type Account struct {
	ID     string
	Region string
}

// String returns the account as people read it.
func (a Account) String() string { return a.ID + " in " + a.Region }
