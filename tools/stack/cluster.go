package main

import "context"

type cluster struct{}

func (*cluster) name() string                                     { return "kubernetes" }
func (*cluster) build(context.Context, *stack) error              { return nil }
func (*cluster) start(context.Context, *stack) (*instance, error) { return &instance{}, nil }
