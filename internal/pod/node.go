package pod

// Node is where pods run.
type Node struct {
	Name string
	UID  string
	// Ready is true only while the node says so; a node that nobody hears from is not.
	Ready bool
	// InstanceID is that of its EC2 instance, "i-…"; empty where the node names none.
	InstanceID string
}
