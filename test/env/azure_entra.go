package env

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// entraCodes are the codes of errors without another one
// (learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow).
var entraCodes = map[int]string{
	http.StatusBadRequest:          "invalid_request",
	http.StatusUnauthorized:        "invalid_client",
	http.StatusForbidden:           "access_denied",
	http.StatusTooManyRequests:     "temporarily_unavailable",
	http.StatusInternalServerError: "server_error",
	http.StatusServiceUnavailable:  "temporarily_unavailable",
}

// serveEntra serves the endpoints of the client credentials flow
// (learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow).
func (a *Azure) serveEntra(w http.ResponseWriter, r *http.Request) {
	tenant, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	operations := map[string]string{"v2.0/.well-known/openid-configuration": "OpenIDConfiguration", "oauth2/v2.0/token": "Token"}
	operation := cmp.Or(operations[rest], "Unknown")
	request := AzureRequest{Plane: PlaneEntra, Method: r.Method, Operation: operation, Path: r.URL.Path}
	failure := func(fault *AzureFault) *azureAnswer {
		answer := a.entraError(fault.Status, cmp.Or(fault.Code, entraCodes[fault.Status], "server_error"), 90033, "A transient error has occurred. Please try again.")
		fault.retryAfter(answer.header)
		return answer
	}
	a.exchange(w, r, request, failure, func(*AzureRequest) *azureAnswer {
		switch {
		case operation == "Unknown":
			return &azureAnswer{status: http.StatusNotFound}
		case tenant != a.TenantID:
			code := "invalid_tenant"
			if operation == "Token" {
				code = "invalid_request"
			}
			return a.entraError(http.StatusBadRequest, code, 90002, "Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into "+
				"the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", tenant)
		case operation == "Token":
			return a.token(r)
		}
		base := a.EntraEndpoint + "/" + a.TenantID
		return entraJSON(http.StatusOK, map[string]any{
			"issuer":                                base + "/v2.0",
			"token_endpoint":                        base + "/oauth2/v2.0/token",
			"authorization_endpoint":                base + "/oauth2/v2.0/authorize",
			"jwks_uri":                              base + "/discovery/v2.0/keys",
			"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt"},
		})
	})
}

// token issues an access token. The texts and numbers of its errors are as clients report
// them; learn.microsoft.com/entra/identity-platform/reference-error-codes has most.
func (a *Azure) token(r *http.Request) *azureAnswer {
	if err := r.ParseForm(); err != nil {
		return a.entraError(http.StatusBadRequest, "invalid_request", 900144, "The request body could not be read.")
	}
	form := r.PostForm
	switch {
	case form.Get("grant_type") != "client_credentials":
		return a.entraError(http.StatusBadRequest, "unsupported_grant_type", 70003, "The app requested an unsupported grant type '%s'.", form.Get("grant_type"))
	case form.Get("client_id") != a.ClientID:
		return a.entraError(http.StatusBadRequest, "unauthorized_client", 700016,
			"Application with identifier '%s' was not found in the directory 'Test'. This can happen if the application has not been installed by the "+
				"administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.",
			form.Get("client_id"))
	case form.Has("client_assertion"):
		const kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
		if form.Get("client_assertion") != a.Token || form.Get("client_assertion_type") != kind {
			return a.entraError(http.StatusUnauthorized, "invalid_client", 700211,
				"No matching federated identity record found for presented assertion issuer. Please check your federated identity credential Subject, Audience and Issuer "+
					"against the presented assertion.")
		}
	case !form.Has("client_secret"):
		return a.entraError(http.StatusUnauthorized, "invalid_client", 7000218,
			"The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
	case form.Get("client_secret") != a.ClientSecret:
		return a.entraError(http.StatusUnauthorized, "invalid_client", 7000215,
			"Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not the client secret ID, "+
				"for a secret added to app '%s'.", a.ClientID)
	}
	if scope := strings.Fields(form.Get("scope")); len(scope) == 0 || strings.TrimRight(strings.TrimSuffix(scope[0], "/.default"), "/") != a.ARMEndpoint {
		return a.entraError(http.StatusBadRequest, "invalid_resource", 500011,
			"The resource principal named %s was not found in the tenant named Test.", form.Get("scope"))
	}
	token := rand.Text()
	a.mu.Lock()
	a.tokens[token] = true
	a.mu.Unlock()
	return entraJSON(http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token})
}

func entraJSON(status int, value any) *azureAnswer {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // only values made in this file
	}
	return &azureAnswer{status: status, body: body, header: http.Header{"Content-Type": {"application/json; charset=utf-8"}, "Cache-Control": {"no-store, no-cache"}}}
}

// entraError is an error in the format of
// learn.microsoft.com/entra/identity-platform/reference-error-codes.
func (a *Azure) entraError(status int, code string, number int, format string, args ...any) *azureAnswer {
	trace, correlation, now := newUUID(), newUUID(), a.Now().Format("2006-01-02 15:04:05Z")
	return entraJSON(status, map[string]any{
		"error": code,
		"error_description": fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			number, fmt.Sprintf(format, args...), trace, correlation, now),
		"error_codes":    []int{number},
		"timestamp":      now,
		"trace_id":       trace,
		"correlation_id": correlation,
		"error_uri":      fmt.Sprintf("%s/error?code=%d", a.EntraEndpoint, number),
	})
}
