package main

// Temporary stand-in: delete this file when webhook_certs.go declares these.

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
)

type fileCertificate struct{}

func newFileCertificate(string, *metrics) (*fileCertificate, error) { return nil, errors.New("none") }
func (*fileCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("none")
}
func (*fileCertificate) ready() error { return errors.New("none") }

type selfManagedCertificate struct{}

func newSelfManagedCertificate(kubernetes.Interface, metadata.Interface, string, string, time.Duration, *metrics) (*selfManagedCertificate, error) {
	return &selfManagedCertificate{}, nil
}
func (*selfManagedCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("none")
}
func (*selfManagedCertificate) ready() error        { return errors.New("none") }
func (*selfManagedCertificate) run(context.Context) {}
