package main

// scenarios are what the demo shows, in the order of the table. Each says what it sets up and what must be true in the
// end; their checks are made on the database, the Kubernetes API and the AWS API.
var scenarios = []scenario{
	healthy, warnedAt30, warnedAt15, warnedAt5, extended, outOfMemory, noDeadline, absurdDeadline,
	expired, expiredWithNames, domainTakenOver, multinode, stuckPreparing, stuckQueued, queued,
	reclaimed, missingPod, evicted, failedLaunch, sameName, strayPod,
	expiredWithDisk, expiredWithUnnamedDisk, driverLeftIt, cancelled, diskTakenOver,
	oldSnapshots, foreignSnapshots, deletedDisk, deletedLately, restoredDisk, staleLock, freshLock,
	manyMissing, pausedAtItsEnd, deadLetter,
	whole,
}
