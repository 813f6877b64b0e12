package pod

// File is a small file for the user to find.
type File struct {
	// Dir is where it goes, an absolute path; Name has no slash in it and does not begin with a dot or a dash.
	Dir  string
	Name string
	// Content is the whole file.
	Content string
	// Replaces removes the directory's other files whose names begin with it; empty for none.
	Replaces string
}

// MaxListing is how many lines a listing may have.
const MaxListing = 1000

// Listing shows what a disk holds.
type Listing struct {
	// Size is what the files take, as people read it ("1.2G"); empty where it could not be told.
	Size string
	// Tree is three levels of names, indented, one to a line, at most MaxListing lines; empty where it could not be read.
	Tree string
	// Truncated is true if there was more than Tree shows.
	Truncated bool
}
