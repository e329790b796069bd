package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestCodeOf(t *testing.T) {
	storage := &storeError{code: codeUnauthorized, err: errors.New("AccessDenied")}
	tests := []struct {
		name string
		err  error
		want errorCode
	}{
		{"store", storage, codeUnauthorized},
		{"wrapped store", fmt.Errorf("observing: %w", storage), codeUnauthorized},
		{"joined store", errors.Join(errors.New("x"), storage), codeUnauthorized},
		{"store without code", &storeError{err: errors.New("x")}, ""},
		{"config", configErrorf("x"), codeConfigurationProblem},
		{"wrapped config", fmt.Errorf("secret: %w", configErrorf("x")), codeConfigurationProblem},
		{"refusal", &Refusal{Message: "x"}, codeConfigurationProblem},
		{"refused extension", (&azureClients{}).refuseExtension(Policy{Days: 2}, Policy{Days: 1}), codeConfigurationProblem},
		{"waiting", &waitError{reason: "x"}, ""},
		{"missing secret", &secretMissingError{}, ""},
		{"words alone", errors.New("AccessDenied Unauthorized NotFound Conflict"), ""},
		{"none", nil, ""},
	}
	for _, test := range tests {
		if got := codeOf(test.err); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestIsTransient(t *testing.T) {
	of := func(code errorCode) error {
		return fmt.Errorf("observing: %w", &storeError{code: code, err: errors.New("x")})
	}
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"store without code", of(""), false},
		{"throttled", of(codeRateLimitsExceeded), true},
		{"dependency", of(codeRetryableDependencies), true},
		{"retryable configuration", of(codeRetryableConfiguration), false},
		{"configuration", of(codeConfigurationProblem), false},
		{"unauthorized", of(codeUnauthorized), false},
		{"unauthenticated", of(codeUnauthenticated), false},
		{"quota", of(codeQuotaExceeded), false},
		{"timeout", fmt.Errorf("x: %w", context.DeadlineExceeded), true},
		{"stopping", fmt.Errorf("x: %w", context.Canceled), true},
		{"config", configErrorf("x"), false},
		{"refusal", &Refusal{}, false},
		{"anything else", errors.New("x"), false},
	}
	for _, test := range tests {
		if got := isTransient(test.err); got != test.want {
			t.Errorf("%s: got %t, want %t", test.name, got, test.want)
		}
	}
}
