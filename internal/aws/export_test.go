package aws

// SetPageSize makes pages small enough to need several.
func (e *EC2) SetPageSize(n int32) { e.pageSize = n }
