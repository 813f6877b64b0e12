// Package simulation proves the invariants of docs/invariants.md in a simulated world: the real services on a real
// PostgreSQL with a virtual clock, against models of all else (package model), where everything that happens, goes wrong
// or comes in between follows from one seed. It consists of tests; `make simulate` runs many seeds of them.
package simulation
