package env

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// AzureDescription is what GET on ControlURL answers.
type AzureDescription struct {
	CloudName, CloudConfig, CAFile, BlobEndpoint string
	// SecretData and WorkloadIdentityData are those of the methods.
	SecretData, WorkloadIdentityData map[string][]byte
	Now                              time.Time
}

// control serves ControlURL.
func (a *Azure) control() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			value, err := f(r)
			switch {
			case errors.Is(err, ErrAzureNotFound):
				http.Error(w, err.Error(), http.StatusNotFound)
			case err != nil:
				http.Error(w, err.Error(), http.StatusBadRequest)
			case value == nil:
				w.WriteHeader(http.StatusNoContent)
			default:
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(value)
			}
		})
	}
	handle("GET /{$}", func(*http.Request) (any, error) {
		return AzureDescription{a.CloudName, a.CloudConfig, a.CAFile, a.BlobEndpoint, a.SecretData(), a.WorkloadIdentityData(), a.Now()}, nil
	})
	handle("POST /advance", func(r *http.Request) (any, error) {
		seconds, err := strconv.ParseInt(r.FormValue("seconds"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parsing the seconds: %w", err)
		}
		a.Advance(time.Duration(seconds) * time.Second)
		return nil, nil
	})
	handle("GET /requests", func(r *http.Request) (any, error) { return a.Requests(r.URL.Query()["path"]...), nil })
	handle("DELETE /requests", func(r *http.Request) (any, error) {
		a.ResetRequests(r.URL.Query()["path"]...)
		return nil, nil
	})
	handle("POST /faults", func(r *http.Request) (any, error) {
		var fault AzureFault
		if err := json.NewDecoder(r.Body).Decode(&fault); err != nil {
			return nil, fmt.Errorf("decoding the fault: %w", err)
		}
		a.Fail(fault)
		return nil, nil
	})
	handle("DELETE /faults", func(*http.Request) (any, error) {
		a.ClearFaults()
		return nil, nil
	})
	handle("GET /containers/{bucket}", func(r *http.Request) (any, error) { return a.Container(r.PathValue("bucket")), nil })
	handle("GET /accounts/{name}", func(r *http.Request) (any, error) { return a.Account(r.PathValue("name")) })
	handle("PUT /blobs/{bucket}/{name...}", func(r *http.Request) (any, error) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, fmt.Errorf("reading the blob: %w", err)
		}
		return nil, a.PutBlob(r.Context(), r.PathValue("bucket"), r.PathValue("name"), data)
	})
	handle("GET /blobs/{bucket}", func(r *http.Request) (any, error) {
		return a.ListBlobs(r.Context(), r.PathValue("bucket"), r.FormValue("prefix"))
	})
	handle("PUT /legalholds/{bucket}/{tag}", func(r *http.Request) (any, error) {
		return nil, a.SetLegalHold(r.PathValue("bucket"), r.PathValue("tag"))
	})
	handle("DELETE /legalholds/{bucket}/{tag}", func(r *http.Request) (any, error) {
		return nil, a.ClearLegalHold(r.PathValue("bucket"), r.PathValue("tag"))
	})
	handle("PUT /policies/{bucket}", func(r *http.Request) (any, error) {
		days, err := strconv.ParseInt(r.FormValue("days"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parsing the days: %w", err)
		}
		return nil, a.SetPolicy(r.PathValue("bucket"), int32(days), r.FormValue("locked") == "true")
	})
	handle("DELETE /policies/{bucket}", func(r *http.Request) (any, error) { return nil, a.RemovePolicy(r.PathValue("bucket")) })
	return mux
}
