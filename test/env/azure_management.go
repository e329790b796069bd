package env

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// azureGroup is a resource group.
type azureGroup struct {
	name, location string
	tags           map[string]any
	// foreign are the names of resources that are no storage accounts.
	foreign  []string
	deleting *azureOperation
}

// azureAccount is a storage account.
type azureAccount struct {
	name, group string
	// resource is the account as clients wrote it.
	resource   map[string]any
	created    time.Time
	keys       [2]AzureKey
	pool       int
	creating   *azureOperation
	containers map[string]*azureContainer
	// shares are the names of its file shares. It never has queues or tables.
	shares []string
}

// azureContainer is a blob container.
type azureContainer struct {
	name         string
	modified     time.Time
	etag         string
	publicAccess string
	metadata     map[string]any
	policy       *azurePolicy
	holds        []azureHold
}

type azurePolicy struct {
	days              int32
	locked            bool
	append, appendAll bool
	etag              string
	history           []PolicyUpdate
}

type azureHold struct {
	tag string
	set time.Time
}

// azureOperation is a long-running operation. It ends when somebody looks after due.
type azureOperation struct {
	id, group string
	due       time.Time
	// finish needs a.mu and returns the answer of the operation.
	finish func() *azureAnswer
	answer *azureAnswer // once it has ended
}

// begin starts a long-running operation; it needs a.mu.
func (a *Azure) begin(group string, finish func() *azureAnswer) *azureOperation {
	a.sequences++
	o := &azureOperation{
		// The group in the id lets tests find the polls among the requests.
		id:     fmt.Sprintf("%s-%d", group, a.sequences),
		group:  strings.ToLower(group),
		due:    time.Now().Add(azureOperationTime),
		finish: finish,
	}
	a.running[o.id] = o
	return o
}

// settle ends the operations that are due; it needs a.mu.
func (a *Azure) settle() {
	for _, o := range a.running {
		if o.answer == nil && a.held[o.group] == 0 && time.Now().After(o.due) {
			o.answer = o.finish()
		}
	}
}

// armRoute is what the path and method of a request to Resource Manager stand for.
type armRoute struct {
	operation string
	// action is the permission that it needs.
	action                               string
	subscription                         string
	group, account, container, operating string
}

// armPaths are patterns of paths; an empty segment takes any.
var armPaths = []struct {
	pattern string
	// operations by method: the id of the operation and the permission that it needs.
	operations map[string][2]string
}{
	{"subscriptions//operationresults/", map[string][2]string{
		"GET": {"Operations_Get", "Microsoft.Resources/subscriptions/operationresults/read"},
	}},
	{"subscriptions//providers/microsoft.storage/checknameavailability", map[string][2]string{
		"POST": {"StorageAccounts_CheckNameAvailability", "Microsoft.Storage/checknameavailability/read"},
	}},
	{"subscriptions//providers/microsoft.storage/storageaccounts", map[string][2]string{
		"GET": {"StorageAccounts_List", "Microsoft.Storage/storageAccounts/read"},
	}},
	{"subscriptions//resourcegroups", map[string][2]string{
		"GET": {"ResourceGroups_List", "Microsoft.Resources/subscriptions/resourceGroups/read"},
	}},
	{"subscriptions//resourcegroups/", map[string][2]string{
		"GET":    {"ResourceGroups_Get", "Microsoft.Resources/subscriptions/resourceGroups/read"},
		"HEAD":   {"ResourceGroups_CheckExistence", "Microsoft.Resources/subscriptions/resourceGroups/read"},
		"PUT":    {"ResourceGroups_CreateOrUpdate", "Microsoft.Resources/subscriptions/resourceGroups/write"},
		"PATCH":  {"ResourceGroups_Update", "Microsoft.Resources/subscriptions/resourceGroups/write"},
		"DELETE": {"ResourceGroups_Delete", "Microsoft.Resources/subscriptions/resourceGroups/delete"},
	}},
	{"subscriptions//resourcegroups//resources", map[string][2]string{
		"GET": {"Resources_ListByResourceGroup", "Microsoft.Resources/subscriptions/resourceGroups/resources/read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts", map[string][2]string{
		"GET": {"StorageAccounts_ListByResourceGroup", "Microsoft.Storage/storageAccounts/read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts/", map[string][2]string{
		"GET":    {"StorageAccounts_GetProperties", "Microsoft.Storage/storageAccounts/read"},
		"PUT":    {"StorageAccounts_Create", "Microsoft.Storage/storageAccounts/write"},
		"PATCH":  {"StorageAccounts_Update", "Microsoft.Storage/storageAccounts/write"},
		"DELETE": {"StorageAccounts_Delete", "Microsoft.Storage/storageAccounts/delete"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//listkeys", map[string][2]string{
		"POST": {"StorageAccounts_ListKeys", "Microsoft.Storage/storageAccounts/listkeys/action"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//regeneratekey", map[string][2]string{
		"POST": {"StorageAccounts_RegenerateKey", "Microsoft.Storage/storageAccounts/regeneratekey/action"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//fileservices/default/shares", map[string][2]string{
		"GET": {"FileShares_List", "Microsoft.Storage/storageAccounts/fileServices/shares/read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//queueservices/default/queues", map[string][2]string{
		"GET": {"Queue_List", "Microsoft.Storage/storageAccounts/queueServices/queues/read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//tableservices/default/tables", map[string][2]string{
		"GET": {"Table_List", "Microsoft.Storage/storageAccounts/tableServices/tables/read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers", map[string][2]string{
		"GET": {"BlobContainers_List", containerAction + "read"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers/", map[string][2]string{
		"GET":    {"BlobContainers_Get", containerAction + "read"},
		"PUT":    {"BlobContainers_Create", containerAction + "write"},
		"PATCH":  {"BlobContainers_Update", containerAction + "write"},
		"DELETE": {"BlobContainers_Delete", containerAction + "delete"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers//setlegalhold", map[string][2]string{
		"POST": {"BlobContainers_SetLegalHold", containerAction + "setLegalHold/action"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers//clearlegalhold", map[string][2]string{
		"POST": {"BlobContainers_ClearLegalHold", containerAction + "clearLegalHold/action"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers//immutabilitypolicies/default", map[string][2]string{
		"GET":    {"BlobContainers_GetImmutabilityPolicy", containerAction + "immutabilityPolicies/read"},
		"PUT":    {"BlobContainers_CreateOrUpdateImmutabilityPolicy", containerAction + "immutabilityPolicies/write"},
		"DELETE": {"BlobContainers_DeleteImmutabilityPolicy", containerAction + "immutabilityPolicies/delete"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers//immutabilitypolicies/default/lock", map[string][2]string{
		"POST": {"BlobContainers_LockImmutabilityPolicy", containerAction + "immutabilityPolicies/lock/action"},
	}},
	{"subscriptions//resourcegroups//providers/microsoft.storage/storageaccounts//blobservices/default/containers//immutabilitypolicies/default/extend", map[string][2]string{
		"POST": {"BlobContainers_ExtendImmutabilityPolicy", containerAction + "immutabilityPolicies/extend/action"},
	}},
}

const containerAction = "Microsoft.Storage/storageAccounts/blobServices/containers/"

// routeARM returns the route of a request; one without an operation is none.
func routeARM(method, path string) armRoute {
	segments := strings.Split(strings.Trim(path, "/"), "/")
	for _, p := range armPaths {
		pattern := strings.Split(p.pattern, "/")
		if len(pattern) != len(segments) {
			continue
		}
		var route armRoute
		match := true
		for i, want := range pattern {
			if want != "" {
				match = match && strings.EqualFold(want, segments[i])
				continue
			}
			switch pattern[i-1] {
			case "subscriptions":
				route.subscription = segments[i]
			case "resourcegroups":
				route.group = segments[i]
			case "storageaccounts":
				route.account = segments[i]
			case "containers":
				route.container = segments[i]
			case "operationresults":
				route.operating = segments[i]
			}
		}
		if match {
			names := p.operations[method]
			route.operation, route.action = names[0], names[1]
			return route
		}
	}
	return armRoute{}
}

// armJSON answers with JSON.
func armJSON(status int, value any) *azureAnswer {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // only values made in this file
	}
	id := newUUID()
	return &azureAnswer{status: status, body: body, header: http.Header{
		"Content-Type":                {"application/json; charset=utf-8"},
		"X-Ms-Request-Id":             {id},
		"X-Ms-Correlation-Request-Id": {id},
	}}
}

// armError answers with an error in the format of Resource Manager
// (learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors).
func armError(status int, code, format string, args ...any) *azureAnswer {
	return armJSON(status, map[string]any{"error": map[string]any{"code": code, "message": fmt.Sprintf(format, args...)}})
}

// armCodes are the codes of errors without another one
// (learn.microsoft.com/rest/api/storagerp/srp_error_codes_common).
var armCodes = map[int]string{
	http.StatusUnauthorized:        "InvalidAuthenticationToken",
	http.StatusForbidden:           "AuthorizationFailed",
	http.StatusNotFound:            "ResourceNotFound",
	http.StatusConflict:            "StorageAccountOperationInProgress",
	http.StatusPreconditionFailed:  "ContainerImmutabilityPolicyFailure",
	http.StatusTooManyRequests:     "TooManyRequests",
	http.StatusInternalServerError: "InternalError",
	http.StatusServiceUnavailable:  "ServiceUnavailable",
}

func (a *Azure) serveARM(w http.ResponseWriter, r *http.Request) {
	route := routeARM(r.Method, r.URL.Path)
	request := AzureRequest{Plane: PlaneARM, Method: r.Method, Operation: cmp.Or(route.operation, "Unknown"), Path: r.URL.Path}
	failure := func(fault *AzureFault) *azureAnswer {
		answer := armError(fault.Status, cmp.Or(fault.Code, armCodes[fault.Status], "Unknown"), "This error was injected.")
		if fault.Status == http.StatusForbidden && (fault.Code == "" || fault.Code == "AuthorizationFailed") {
			answer = a.authorizationFailed(route, r.URL.Path)
		}
		fault.retryAfter(answer.header)
		return answer
	}
	// First, since the client may be gone after a hook.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		drop(w)
		return
	}
	a.exchange(w, r, request, failure, func(*AzureRequest) *azureAnswer {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.settle()
		return a.handleARM(r, route, body)
	})
}

// authorizationFailed is what a principal without a role gets
// (learn.microsoft.com/azure/role-based-access-control/troubleshooting).
func (a *Azure) authorizationFailed(route armRoute, path string) *azureAnswer {
	return armError(http.StatusForbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s' or the scope is invalid. "+
			"If access was recently granted, please refresh your credentials.", a.ClientID, a.ClientID, route.action, path)
}

// handleARM needs a.mu.
func (a *Azure) handleARM(r *http.Request, route armRoute, content []byte) *azureAnswer {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer || !a.tokens[token] {
		code, message := "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
		if bearer {
			code, message = "InvalidAuthenticationToken", "The access token is invalid."
		}
		answer := armError(http.StatusUnauthorized, code, "%s", message)
		answer.header.Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization_uri="%s/%s", error="invalid_token", error_description="%s"`,
			a.EntraEndpoint, a.TenantID, message))
		return answer
	}
	if route.operation == "" {
		return armError(http.StatusBadRequest, "InvalidHttpVerb", "%s %s is not known to this test environment.", r.Method, r.URL.Path)
	}
	if r.URL.Query().Get("api-version") == "" && route.operating == "" {
		return armError(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	if !strings.EqualFold(route.subscription, a.SubscriptionID) {
		return armError(http.StatusNotFound, "SubscriptionNotFound", "The subscription '%s' could not be found.", route.subscription)
	}
	body := map[string]any{}
	if len(content) > 0 {
		if err := json.Unmarshal(content, &body); err != nil {
			return armError(http.StatusBadRequest, "InvalidRequestContent", "The request content was invalid and could not be deserialized: '%v'.", err)
		}
	}
	switch family, _, _ := strings.Cut(route.operation, "_"); family {
	case "Operations":
		return a.pollOperation(route.operating)
	case "StorageAccounts", "FileShares", "Queue", "Table":
		return a.handleAccount(route, body)
	case "BlobContainers":
		return a.handleContainer(r, route, body)
	}
	return a.handleGroup(route, body)
}

// accepted is the first answer of a long-running operation
// (learn.microsoft.com/azure/azure-resource-manager/management/async-operations).
func (a *Azure) accepted(o *azureOperation) *azureAnswer {
	answer := &azureAnswer{status: http.StatusAccepted, header: http.Header{}}
	answer.header.Set("Location", fmt.Sprintf("%s/subscriptions/%s/operationresults/%s?api-version=2025-04-01", a.ARMEndpoint, a.SubscriptionID, o.id))
	// Azure asks for 15 seconds and more.
	answer.header.Set("X-Ms-Retry-After-Ms", "50")
	return answer
}

func (a *Azure) pollOperation(id string) *azureAnswer {
	o := a.running[id]
	switch {
	case o == nil:
		return armError(http.StatusNotFound, "NotFound", "The operation '%s' could not be found.", id)
	case o.answer == nil:
		return a.accepted(o)
	}
	return o.answer
}

// azureRegions are some of those that exist, and are enough.
var azureRegions = []string{
	"australiaeast", "brazilsouth", "canadacentral", "centralindia", "centralus", "chinanorth3", "eastasia", "eastus", "eastus2",
	"francecentral", "germanywestcentral", "italynorth", "japaneast", "koreacentral", "northeurope", "norwayeast", "southafricanorth",
	"southcentralus", "southeastasia", "swedencentral", "switzerlandnorth", "uksouth", "usgovvirginia", "westeurope", "westus", "westus2", "westus3",
}

// location returns a region as Azure writes it, e.g. westeurope for "West Europe".
func location(body map[string]any) string {
	name, _ := body["location"].(string)
	return strings.ToLower(strings.ReplaceAll(name, " ", ""))
}

func groupNotFound(name string) *azureAnswer {
	return armError(http.StatusNotFound, "ResourceGroupNotFound", "Resource group '%s' could not be found.", name)
}

// beingDeleted is Azure's answer to writes into a group that is being deleted.
func beingDeleted(name string) *azureAnswer {
	return armError(http.StatusConflict, "ResourceGroupBeingDeleted",
		"The resource group '%s' is in deprovisioning state and cannot perform this operation.", name)
}

func (a *Azure) handleGroup(route armRoute, body map[string]any) *azureAnswer {
	key := strings.ToLower(route.group)
	group := a.groups[key]
	switch route.operation {
	case "ResourceGroups_List":
		list := []any{}
		for _, name := range slices.Sorted(maps.Keys(a.groups)) {
			list = append(list, a.groupJSON(a.groups[name]))
		}
		return armJSON(http.StatusOK, map[string]any{"value": list})
	case "ResourceGroups_CheckExistence":
		if group == nil {
			return &azureAnswer{status: http.StatusNotFound}
		}
		return &azureAnswer{status: http.StatusNoContent}
	case "ResourceGroups_CreateOrUpdate":
		return a.putGroup(route, group, body)
	}
	if group == nil {
		return groupNotFound(route.group)
	}
	switch route.operation {
	case "ResourceGroups_Get":
		return armJSON(http.StatusOK, a.groupJSON(group))
	case "ResourceGroups_Update":
		if group.deleting != nil {
			return beingDeleted(group.name)
		}
		if tags, ok := body["tags"].(map[string]any); ok {
			group.tags = tags
		}
		return armJSON(http.StatusOK, a.groupJSON(group))
	case "ResourceGroups_Delete":
		if group.deleting == nil {
			group.deleting = a.begin(group.name, func() *azureAnswer { return a.deleteGroup(group) })
		}
		return a.accepted(group.deleting)
	}
	// Resources_ListByResourceGroup
	list := []any{}
	for _, name := range slices.Sorted(maps.Keys(a.accounts)) {
		if account := a.accounts[name]; account.group == key {
			full := a.accountJSON(account)
			list = append(list, map[string]any{
				"id": full["id"], "name": name, "type": full["type"], "location": full["location"], "kind": full["kind"], "sku": full["sku"], "tags": full["tags"],
			})
		}
	}
	for _, name := range group.foreign {
		const kind = "Microsoft.Network/virtualNetworks"
		list = append(list, map[string]any{
			"id": a.groupID(group) + "/providers/" + kind + "/" + name, "name": name, "type": kind, "location": group.location, "tags": map[string]any{},
		})
	}
	return armJSON(http.StatusOK, map[string]any{"value": list})
}

func (a *Azure) groupID(group *azureGroup) string {
	return "/subscriptions/" + a.SubscriptionID + "/resourceGroups/" + group.name
}

func (a *Azure) groupJSON(group *azureGroup) map[string]any {
	return map[string]any{
		"id": a.groupID(group), "name": group.name, "type": "Microsoft.Resources/resourceGroups", "location": group.location,
		"tags": group.tags, "properties": map[string]any{"provisioningState": group.state()},
	}
}

// state is the provisioning state.
func (group *azureGroup) state() string {
	if group.deleting != nil {
		return "Deleting"
	}
	return "Succeeded"
}

// groupName: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
var groupName = regexp.MustCompile(`^[-\w._()]{0,89}[-\w_()]$`)

func (a *Azure) putGroup(route armRoute, group *azureGroup, body map[string]any) *azureAnswer {
	where := location(body)
	tags, _ := body["tags"].(map[string]any)
	switch {
	case !groupName.MatchString(route.group):
		return armError(http.StatusBadRequest, "InvalidResourceGroupName", "The provided resource group name '%s' is invalid.", route.group)
	case where == "":
		return armError(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	case !slices.Contains(azureRegions, where):
		return armError(http.StatusBadRequest, "LocationNotAvailableForResourceGroup",
			"The provided location '%s' is not available for resource group. List of available regions is '%s'.", where, strings.Join(azureRegions, ","))
	case group == nil:
		group = &azureGroup{name: route.group, location: where, tags: tags}
		a.groups[strings.ToLower(route.group)] = group
		return armJSON(http.StatusCreated, a.groupJSON(group))
	case group.deleting != nil:
		return beingDeleted(group.name)
	case group.location != where:
		return armError(http.StatusConflict, "InvalidResourceGroupLocation",
			"Invalid resource group location '%s'. The Resource group already exists in location '%s'.", where, group.location)
	}
	// A PUT replaces the tags.
	group.tags = tags
	return armJSON(http.StatusOK, a.groupJSON(group))
}

// deleteGroup ends the deletion of a group with all that is in it. Accounts that Azure
// protects stay, and so does the group; the operation fails
// (github.com/Azure/azure-powershell/issues/26148 and, for the format of the error,
// github.com/Azure/bicep-registry-modules/pull/1607).
func (a *Azure) deleteGroup(group *azureGroup) *azureAnswer {
	var kept []string
	var details []any
	for name, account := range a.accounts {
		if account.group != strings.ToLower(group.name) {
			continue
		}
		if reason := account.protection(); reason != "" {
			kept = append(kept, "Microsoft.Storage/storageAccounts/"+name)
			details = append(details, map[string]any{"code": "AccountProtectedFromDeletion", "target": a.accountID(account), "message": reason})
			continue
		}
		if err := a.removeAccount(account); err != nil {
			return armError(http.StatusInternalServerError, "InternalError", "%v", err)
		}
	}
	group.deleting = nil
	if kept != nil {
		return armJSON(http.StatusConflict, map[string]any{"error": map[string]any{
			"code": "ResourceGroupDeletionBlocked",
			"message": fmt.Sprintf("Deletion of resource group '%s' failed as resources with identifiers '%s' could not be deleted. "+
				"The provisioning state of the resource group will be rolled back.", group.name, strings.Join(kept, ",")),
			"details": details,
		}})
	}
	delete(a.groups, strings.ToLower(group.name))
	return &azureAnswer{status: http.StatusOK}
}

// protection says why Azure does not delete the account, or is empty: "Storage account
// deletion fails if there is at least one container with a locked time-based retention
// policy. Unlocked policies don't provide delete protection."
// (learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies), and
// AccountProtectedFromDeletion for "legal hold\locked immutability policy"
// (learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes).
func (account *azureAccount) protection() string {
	for _, why := range []struct {
		what  string
		holds func(*azureContainer) bool
	}{
		{"a locked immutability policy", func(c *azureContainer) bool { return c.policy != nil && c.policy.locked }},
		{"legal hold", func(c *azureContainer) bool { return len(c.holds) > 0 }},
	} {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(account.containers)) {
			if why.holds(account.containers[name]) {
				names = append(names, name)
			}
		}
		if names != nil {
			return fmt.Sprintf("The storage account %s is protected from deletion. The container(s) %s have %s.", account.name, strings.Join(names, ","), why.what)
		}
	}
	return ""
}

// removeAccount deletes an account and its blobs; it needs a.mu.
func (a *Azure) removeAccount(account *azureAccount) error {
	for name := range account.containers {
		if err := a.removeContainer(account, name); err != nil {
			return err
		}
	}
	delete(a.accounts, account.name)
	a.free = append(a.free, account.pool)
	return nil
}

func (a *Azure) accountID(account *azureAccount) string {
	return a.groupID(a.groups[account.group]) + "/providers/Microsoft.Storage/storageAccounts/" + account.name
}

// accountJSON needs a.mu.
func (a *Azure) accountJSON(account *azureAccount) map[string]any {
	resource := copyJSON(account.resource)
	resource["id"], resource["name"], resource["type"] = a.accountID(account), account.name, "Microsoft.Storage/storageAccounts"
	if sku, ok := resource["sku"].(map[string]any); ok {
		name, _ := sku["name"].(string)
		sku["tier"], _, _ = strings.Cut(name, "_")
	}
	properties := resource["properties"].(map[string]any)
	properties["provisioningState"] = "Succeeded"
	if account.creating != nil && account.creating.answer == nil {
		properties["provisioningState"] = "Creating"
	}
	properties["creationTime"] = account.created.Format(time.RFC3339Nano)
	properties["primaryLocation"] = resource["location"]
	properties["statusOfPrimary"] = "available"
	properties["primaryEndpoints"] = map[string]any{"blob": strings.ReplaceAll(a.BlobEndpoint, "{account}", account.name) + "/"}
	times := map[string]any{}
	for _, key := range account.keys {
		// The time of a key that was made before Azure kept times is null
		// (learn.microsoft.com/azure/storage/common/storage-account-keys-manage).
		times[key.Name] = nil
		if !key.Created.IsZero() {
			times[key.Name] = key.Created.Format(time.RFC3339Nano)
		}
	}
	properties["keyCreationTime"] = times
	return resource
}

// copyJSON returns a deep copy.
func copyJSON(value map[string]any) map[string]any {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // it came from JSON
	}
	result := map[string]any{}
	if err := json.Unmarshal(data, &result); err != nil {
		panic(err)
	}
	return result
}

// computed are the properties of an account that clients cannot write.
var computed = []string{"provisioningState", "creationTime", "primaryLocation", "statusOfPrimary", "primaryEndpoints", "keyCreationTime"}

// merge writes what a client sent into the account. Properties that it did not send
// stay, in a PUT too (learn.microsoft.com/rest/api/storagerp/storage-accounts/create).
func (account *azureAccount) merge(body map[string]any) {
	for _, name := range []string{"location", "sku", "kind", "tags", "identity", "extendedLocation"} {
		if value, ok := body[name]; ok && value != nil {
			account.resource[name] = value
		}
	}
	account.resource["location"] = location(account.resource)
	properties := account.resource["properties"].(map[string]any)
	sent, _ := body["properties"].(map[string]any)
	for name, value := range sent {
		if value != nil && !slices.Contains(computed, name) {
			properties[name] = value
		}
	}
}

// accountName: learn.microsoft.com/azure/storage/common/storage-account-overview
var accountName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

func (a *Azure) handleAccount(route armRoute, body map[string]any) *azureAnswer {
	list := func(group string) *azureAnswer {
		value := []any{}
		for _, name := range slices.Sorted(maps.Keys(a.accounts)) {
			if account := a.accounts[name]; group == "" || account.group == group {
				value = append(value, a.accountJSON(account))
			}
		}
		return armJSON(http.StatusOK, map[string]any{"value": value})
	}
	switch route.operation {
	case "StorageAccounts_List":
		return list("")
	case "StorageAccounts_CheckNameAvailability":
		name, _ := body["name"].(string)
		switch {
		case !accountName.MatchString(name):
			return armJSON(http.StatusOK, map[string]any{"nameAvailable": false, "reason": "AccountNameInvalid", "message": invalidAccountName(name)})
		case a.taken[name] || a.accounts[name] != nil:
			return armJSON(http.StatusOK, map[string]any{
				"nameAvailable": false, "reason": "AlreadyExists", "message": "The storage account named " + name + " is already taken.",
			})
		}
		return armJSON(http.StatusOK, map[string]any{"nameAvailable": true})
	}
	group := a.groups[strings.ToLower(route.group)]
	if group == nil {
		return groupNotFound(route.group)
	}
	if route.operation == "StorageAccounts_ListByResourceGroup" {
		return list(strings.ToLower(route.group))
	}
	account := a.accounts[route.account]
	if account != nil && account.group != strings.ToLower(route.group) {
		if route.operation == "StorageAccounts_Create" {
			return armError(http.StatusConflict, "StorageAccountInAnotherResourceGroup",
				"The account %s is already in another resource group in this subscription.", route.account)
		}
		account = nil
	}
	switch {
	case route.operation == "StorageAccounts_Create":
		return a.putAccount(group, account, route.account, body)
	case account == nil && route.operation == "StorageAccounts_Delete":
		return &azureAnswer{status: http.StatusNoContent}
	case account == nil:
		return accountNotFound(route)
	case route.operation == "StorageAccounts_GetProperties":
		return armJSON(http.StatusOK, a.accountJSON(account))
	case account.isCreating():
		return notProvisioned()
	case route.operation == "FileShares_List":
		list := []any{}
		for _, name := range account.shares {
			list = append(list, map[string]any{
				"id": a.accountID(account) + "/fileServices/default/shares/" + name, "name": name,
				"type": "Microsoft.Storage/storageAccounts/fileServices/shares", "properties": map[string]any{},
			})
		}
		return armJSON(http.StatusOK, map[string]any{"value": list})
	case route.operation == "Queue_List", route.operation == "Table_List":
		return armJSON(http.StatusOK, map[string]any{"value": []any{}})
	case group.deleting != nil && route.operation != "StorageAccounts_ListKeys":
		return beingDeleted(group.name)
	}
	switch route.operation {
	case "StorageAccounts_Update":
		account.merge(body)
		return armJSON(http.StatusOK, a.accountJSON(account))
	case "StorageAccounts_Delete":
		if reason := account.protection(); reason != "" {
			return armError(http.StatusConflict, "AccountProtectedFromDeletion", "%s", reason)
		}
		if err := a.removeAccount(account); err != nil {
			return armError(http.StatusInternalServerError, "InternalError", "%v", err)
		}
		return &azureAnswer{status: http.StatusOK}
	case "StorageAccounts_RegenerateKey":
		name, _ := body["keyName"].(string)
		i := slices.IndexFunc(account.keys[:], func(key AzureKey) bool { return strings.EqualFold(key.Name, name) })
		if i < 0 {
			return armError(http.StatusBadRequest, "InvalidValuesForRequestParameters", "Values for request parameters are invalid: keyName.")
		}
		account.keys[i] = AzureKey{Name: account.keys[i].Name, Value: base64.StdEncoding.EncodeToString(newKey()), Created: a.Now()}
	}
	// learn.microsoft.com/rest/api/storagerp/storage-accounts/list-keys
	keys := []any{}
	for _, key := range account.keys {
		value := map[string]any{"keyName": key.Name, "value": key.Value, "permissions": "FULL"}
		if !key.Created.IsZero() {
			value["creationTime"] = key.Created.Format(time.RFC3339Nano)
		}
		keys = append(keys, value)
	}
	return armJSON(http.StatusOK, map[string]any{"keys": keys})
}

func (account *azureAccount) isCreating() bool {
	return account.creating != nil && account.creating.answer == nil
}

func accountNotFound(route armRoute) *azureAnswer {
	return armError(http.StatusNotFound, "ResourceNotFound",
		"The Resource 'Microsoft.Storage/storageAccounts/%s' under resource group '%s' was not found. "+
			"For more details please go to https://aka.ms/ARMResourceNotFoundFix", route.account, route.group)
}

// notProvisioned: learn.microsoft.com/rest/api/storagerp/srp_error_codes_common
func notProvisioned() *azureAnswer {
	return armError(http.StatusConflict, "StorageAccountIsNotProvisioned",
		"The storage account provisioning state must be 'Succeeded' before executing the operation.")
}

func invalidAccountName(name string) string {
	return name + " is not a valid storage account name. Storage account name must be between 3 and 24 characters in length and use numbers and lower-case letters only."
}

// putAccount needs a.mu. Its errors about names and about another location or group are in
// learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-storage-account-name,
// the others are from memory of the API.
func (a *Azure) putAccount(group *azureGroup, account *azureAccount, name string, body map[string]any) *azureAnswer {
	where := location(body)
	sku, _ := body["sku"].(map[string]any)
	switch {
	case !accountName.MatchString(name):
		return armError(http.StatusBadRequest, "AccountNameInvalid", "%s", invalidAccountName(name))
	case where == "":
		return armError(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	case !slices.Contains(azureRegions, where):
		return armError(http.StatusBadRequest, "LocationNotAvailableForResourceType",
			"The provided location '%s' is not available for resource type 'Microsoft.Storage/storageAccounts'. "+
				"List of available regions for the resource type is '%s'.", where, strings.Join(azureRegions, ","))
	case sku["name"] == nil || body["kind"] == nil:
		return armError(http.StatusBadRequest, "InvalidRequestContent", "Required properties sku.name and kind are missing.")
	case group.deleting != nil:
		return beingDeleted(group.name)
	case a.taken[name]:
		return armError(http.StatusConflict, "StorageAccountAlreadyTaken", "The storage account named %s is already taken.", name)
	case account == nil:
		return a.createAccount(group, name, body)
	case account.isCreating():
		return armError(http.StatusConflict, "StorageAccountOperationInProgress",
			"An operation is currently performing on this storage account that requires exclusive access.")
	case account.resource["location"] != where:
		return armError(http.StatusConflict, "InvalidResourceLocation",
			"The resource '%s' already exists in location '%s' in resource group '%s'. A resource with the same name cannot be created in location '%s'. "+
				"Please select a new resource name.", name, account.resource["location"], group.name, where)
	}
	account.merge(body)
	return armJSON(http.StatusOK, a.accountJSON(account))
}

func (a *Azure) createAccount(group *azureGroup, name string, body map[string]any) *azureAnswer {
	if len(a.free) == 0 {
		return armError(http.StatusBadRequest, "MaximumStorageAccountCountExceeded", "This test environment has no more than %d storage accounts.", azurePoolSize)
	}
	account := &azureAccount{
		name: name, group: strings.ToLower(group.name), created: a.Now(), pool: a.free[len(a.free)-1], containers: map[string]*azureContainer{},
		// Azure's defaults: learn.microsoft.com/rest/api/storagerp/storage-accounts/create
		resource: map[string]any{"tags": map[string]any{}, "properties": map[string]any{
			"supportsHttpsTrafficOnly": true, "minimumTlsVersion": "TLS1_0", "allowBlobPublicAccess": false, "accessTier": "Hot",
		}},
	}
	a.free = a.free[:len(a.free)-1]
	for i, key := range []string{"key1", "key2"} {
		account.keys[i] = AzureKey{Name: key, Value: base64.StdEncoding.EncodeToString(newKey()), Created: account.created}
	}
	account.merge(body)
	a.accounts[name] = account
	account.creating = a.begin(group.name, func() *azureAnswer {
		if a.accounts[name] != account {
			return armError(http.StatusNotFound, "ResourceNotFound", "The storage account %s was deleted while it was created.", name)
		}
		account.creating.answer = &azureAnswer{} // so that it is shown as created
		return armJSON(http.StatusOK, a.accountJSON(account))
	})
	return a.accepted(account.creating)
}

// containerName: learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
var containerName = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)

func (a *Azure) handleContainer(r *http.Request, route armRoute, body map[string]any) *azureAnswer {
	group := a.groups[strings.ToLower(route.group)]
	if group == nil {
		return groupNotFound(route.group)
	}
	account := a.accounts[route.account]
	switch {
	case account == nil || account.group != strings.ToLower(route.group):
		if route.operation == "BlobContainers_Create" {
			return armError(http.StatusNotFound, "ParentResourceNotFound",
				"Failed to perform 'write' on resource(s) of type 'storageAccounts/blobServices/containers', because the parent resource "+
					"'/subscriptions/%s/resourceGroups/%s/providers/Microsoft.Storage/storageAccounts/%s' could not be found.", a.SubscriptionID, route.group, route.account)
		}
		return accountNotFound(route)
	case account.isCreating():
		return notProvisioned()
	case group.deleting != nil && r.Method != http.MethodGet:
		return beingDeleted(group.name)
	}
	container := account.containers[route.container]
	switch {
	case route.operation == "BlobContainers_List":
		list := []any{}
		for _, name := range slices.Sorted(maps.Keys(account.containers)) {
			list = append(list, a.containerJSON(account, account.containers[name]))
		}
		return armJSON(http.StatusOK, map[string]any{"value": list})
	case route.operation == "BlobContainers_Create":
		return a.putContainer(r.Context(), account, container, route.container, body)
	case container == nil && route.operation == "BlobContainers_Delete":
		return &azureAnswer{status: http.StatusNoContent}
	case container == nil:
		return armError(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	}
	switch route.operation {
	case "BlobContainers_Get":
		return armJSON(http.StatusOK, a.containerJSON(account, container))
	case "BlobContainers_Update":
		return a.updateContainer(account, container, body, http.StatusOK)
	case "BlobContainers_Delete":
		return a.deleteContainer(r.Context(), account, container)
	case "BlobContainers_SetLegalHold", "BlobContainers_ClearLegalHold":
		return a.changeHold(container, body, route.operation == "BlobContainers_SetLegalHold")
	}
	var match policyMatch
	if values := r.Header.Values("If-Match"); len(values) > 0 {
		match = policyMatch{given: true, etag: strings.Trim(values[0], `"`)}
	}
	properties, _ := body["properties"].(map[string]any)
	var answer *azureAnswer
	switch route.operation {
	case "BlobContainers_GetImmutabilityPolicy":
		if match.given && !match.holds(container.policy) {
			return wrongETag()
		}
	case "BlobContainers_CreateOrUpdateImmutabilityPolicy":
		answer = a.putPolicy(container, match, properties)
	case "BlobContainers_DeleteImmutabilityPolicy":
		if answer = a.deletePolicy(container, match); answer == nil {
			// "The response of delete has immutabilityPeriodSinceCreationInDays set to 0", and
			// the example calls the state Unlocked
			// (learn.microsoft.com/rest/api/storagerp/blob-containers/delete-immutability-policy).
			return a.policyAnswer(account, container, a.newETag(), map[string]any{"immutabilityPeriodSinceCreationInDays": 0, "state": "Unlocked"})
		}
	case "BlobContainers_LockImmutabilityPolicy":
		answer = a.lockPolicy(container, match)
	case "BlobContainers_ExtendImmutabilityPolicy":
		answer = a.extendPolicy(container, match, properties)
	}
	if answer != nil {
		return answer
	}
	if container.policy == nil {
		// A policy that is not there is no error
		// (github.com/pulumi/pulumi-azure-native/pull/2154 shows it).
		return a.policyAnswer(account, container, "", map[string]any{"immutabilityPeriodSinceCreationInDays": 0, "state": "Deleted"})
	}
	return a.policyAnswer(account, container, container.policy.etag, container.policy.json())
}

func (a *Azure) containerID(account *azureAccount, container *azureContainer) string {
	return a.accountID(account) + "/blobServices/default/containers/" + container.name
}

func (a *Azure) policyAnswer(account *azureAccount, container *azureContainer, etag string, properties map[string]any) *azureAnswer {
	answer := armJSON(http.StatusOK, map[string]any{
		"id": a.containerID(account, container) + "/immutabilityPolicies/default", "name": "default",
		"type": "Microsoft.Storage/storageAccounts/blobServices/containers/immutabilityPolicies", "etag": etag, "properties": properties,
	})
	if etag != "" {
		answer.header.Set("ETag", etag)
	}
	return answer
}

func (p *azurePolicy) json() map[string]any {
	properties := map[string]any{"immutabilityPeriodSinceCreationInDays": p.days, "state": p.state()}
	if p.append {
		properties["allowProtectedAppendWrites"] = true
	}
	if p.appendAll {
		properties["allowProtectedAppendWritesAll"] = true
	}
	return properties
}

// state is as Azure writes it.
func (p *azurePolicy) state() string {
	if p.locked {
		return "Locked"
	}
	return "Unlocked"
}

// containerJSON is as in the examples of
// learn.microsoft.com/rest/api/storagerp/blob-containers/get.
func (a *Azure) containerJSON(account *azureAccount, container *azureContainer) map[string]any {
	properties := map[string]any{
		"deleted": false, "remainingRetentionDays": 0, "leaseStatus": "Unlocked", "leaseState": "Available",
		"defaultEncryptionScope": "$account-encryption-key", "denyEncryptionScopeOverride": false,
		"publicAccess": container.publicAccess, "lastModifiedTime": container.modified.Format(time.RFC3339Nano),
		"hasImmutabilityPolicy": container.policy != nil, "hasLegalHold": len(container.holds) > 0,
	}
	if container.metadata != nil {
		properties["metadata"] = container.metadata
	}
	if policy := container.policy; policy != nil {
		history := []any{}
		for _, update := range policy.history {
			history = append(history, map[string]any{
				"update": update.Update, "immutabilityPeriodSinceCreationInDays": update.Days, "timestamp": update.Time.Format(time.RFC3339Nano),
				"objectIdentifier": a.ClientID, "tenantId": a.TenantID,
			})
		}
		properties["immutabilityPolicy"] = map[string]any{"etag": policy.etag, "properties": policy.json(), "updateHistory": history}
	}
	if len(container.holds) > 0 {
		tags := []any{}
		for _, hold := range container.holds {
			tags = append(tags, map[string]any{
				"tag": hold.tag, "timestamp": hold.set.Format(time.RFC3339Nano), "objectIdentifier": a.ClientID, "tenantId": a.TenantID,
			})
		}
		properties["legalHold"] = map[string]any{"hasLegalHold": true, "tags": tags}
	}
	return map[string]any{
		"id": a.containerID(account, container), "name": container.name,
		"type": "Microsoft.Storage/storageAccounts/blobServices/containers", "etag": container.etag, "properties": properties,
	}
}

func (a *Azure) putContainer(ctx context.Context, account *azureAccount, container *azureContainer, name string, body map[string]any) *azureAnswer {
	if !containerName.MatchString(name) {
		return armError(http.StatusBadRequest, "InvalidResourceName", "The specifed resource name contains invalid characters.")
	}
	if container != nil {
		return a.updateContainer(account, container, body, http.StatusOK)
	}
	container = a.newContainer(name)
	answer := a.updateContainer(account, container, body, http.StatusCreated)
	if answer.status != http.StatusCreated {
		return answer
	}
	if _, err := a.azuriteDo(ctx, http.MethodPut, account.pool, "/"+name, "restype=container", nil, nil); err != nil {
		return armError(http.StatusInternalServerError, "InternalError", "%v", err)
	}
	account.containers[name] = container
	return answer
}

// newContainer needs a.mu.
func (a *Azure) newContainer(name string) *azureContainer {
	return &azureContainer{name: name, publicAccess: "None", modified: a.Now(), etag: a.newETag()}
}

// updateContainer writes the properties that were sent.
func (a *Azure) updateContainer(account *azureAccount, container *azureContainer, body map[string]any, status int) *azureAnswer {
	properties, _ := body["properties"].(map[string]any)
	if access, ok := properties["publicAccess"].(string); ok {
		// learn.microsoft.com/azure/storage/blobs/anonymous-read-access-prevent
		if access != "None" && account.resource["properties"].(map[string]any)["allowBlobPublicAccess"] != true {
			return armError(http.StatusConflict, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
		}
		container.publicAccess = access
	}
	if metadata, ok := properties["metadata"].(map[string]any); ok {
		container.metadata = metadata
	}
	container.modified, container.etag = a.Now(), a.newETag()
	return armJSON(status, a.containerJSON(account, container))
}

// deleteContainer deletes a container with its blobs. "Container deletion fails if at
// least one blob exists in the container, regardless of whether policy is locked or
// unlocked" (learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies);
// one with a legal hold is protected also when it is empty. The messages are those that
// Azure PowerShell's tests expect (github.com/Azure/azure-powershell).
func (a *Azure) deleteContainer(ctx context.Context, account *azureAccount, container *azureContainer) *azureAnswer {
	protected := ""
	switch {
	case len(container.holds) > 0:
		protected = "LegalHold"
	case container.policy != nil:
		blobs, err := a.azuriteDo(ctx, http.MethodGet, account.pool, "/"+container.name, "restype=container&comp=list&maxresults=1&include=snapshots", nil, nil)
		if err != nil {
			return armError(http.StatusInternalServerError, "InternalError", "%v", err)
		}
		if strings.Contains(string(blobs.body), "<Blob>") {
			protected = "ImmutabilityPolicy"
		}
	}
	if protected != "" {
		return armError(http.StatusConflict, "ContainerProtectedFromDeletion",
			"The storage account %s container %s is protected from deletion due to %s.", account.name, container.name, protected)
	}
	if err := a.removeContainer(account, container.name); err != nil {
		return armError(http.StatusInternalServerError, "InternalError", "%v", err)
	}
	return &azureAnswer{status: http.StatusOK}
}

// removeContainer needs a.mu.
func (a *Azure) removeContainer(account *azureAccount, name string) error {
	// Not bound to the client's request: it must not be half done.
	if _, err := a.azuriteDo(context.Background(), http.MethodDelete, account.pool, "/"+name, "restype=container", nil, nil); err != nil {
		return err
	}
	delete(account.containers, name)
	return nil
}

// changeHold: "SetLegalHold follows an append pattern and does not clear out the existing
// tags", at most 10 tags of 3 to 23 alphanumerics
// (learn.microsoft.com/rest/api/storagerp/blob-containers/set-legal-hold,
// learn.microsoft.com/azure/storage/blobs/immutable-container-level-worm-policies).
func (a *Azure) changeHold(container *azureContainer, body map[string]any, set bool) *azureAnswer {
	tags, _ := body["tags"].([]any)
	if len(tags) == 0 || len(tags) > 10 {
		return armError(http.StatusBadRequest, "InvalidRequestPropertyValue", "A legal hold has 1 to 10 tags.")
	}
	for _, value := range tags {
		tag, _ := value.(string)
		tag = strings.ToLower(tag)
		if !legalHoldTag.MatchString(tag) {
			return armError(http.StatusBadRequest, "InvalidRequestPropertyValue", "The tag of a legal hold has 3 to 23 alphanumeric characters.")
		}
		i := slices.IndexFunc(container.holds, func(h azureHold) bool { return h.tag == tag })
		switch {
		case set && i < 0:
			container.holds = append(container.holds, azureHold{tag, a.Now()})
		case !set && i >= 0:
			container.holds = slices.Delete(container.holds, i, i+1)
		}
	}
	names := []string{}
	for _, hold := range container.holds {
		names = append(names, hold.tag)
	}
	return armJSON(http.StatusOK, map[string]any{"hasLegalHold": len(names) > 0, "tags": names})
}

var legalHoldTag = regexp.MustCompile(`^[a-z0-9]{3,23}$`)

// newETag needs a.mu.
func (a *Azure) newETag() string {
	a.sequences++
	return fmt.Sprintf(`"8d%013x"`, a.sequences)
}

// policyMatch is the header If-Match of a write to a policy.
type policyMatch struct {
	given bool
	etag  string // without quotes: Azure's examples come without
}

// holds: "A value of "*" can be used to apply the operation only if the immutability
// policy already exists"
// (learn.microsoft.com/rest/api/storagerp/blob-containers/create-or-update-immutability-policy).
func (m policyMatch) holds(policy *azurePolicy) bool {
	return m.given && policy != nil && (m.etag == "*" || m.etag == strings.Trim(policy.etag, `"`))
}

// wrongETag is Azure's answer (github.com/pulumi/pulumi-azure-native/issues/2156), also
// where If-Match is required and missing.
func wrongETag() *azureAnswer {
	return armError(http.StatusPreconditionFailed, "ContainerImmutabilityPolicyFailure",
		"Operation not allowed on immutability policy with incorrect etag.")
}

// wrongState is Azure's answer to what a policy's state does not allow, such as a change
// of a locked one (the message is in the tests of github.com/Azure/azure-powershell).
func wrongState() *azureAnswer {
	return armError(http.StatusConflict, "ContainerImmutabilityPolicyFailure",
		"Operation not allowed on immutability policy with current state.")
}

// policyDays returns the interval that was sent: "The minimum retention interval is one
// day, and the maximum is 146,000 days"
// (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
func policyDays(properties map[string]any) (int32, *azureAnswer) {
	days, _ := properties["immutabilityPeriodSinceCreationInDays"].(float64)
	if days < 1 || days > 146_000 || days != float64(int32(days)) {
		return 0, armError(http.StatusBadRequest, "InvalidRequestPropertyValue",
			"The value '%v' of immutabilityPeriodSinceCreationInDays is not between 1 and 146000.", days)
	}
	return int32(days), nil
}

// putPolicy creates or replaces an unlocked policy: "ETag in If-Match is honored if given
// but not required for this operation". It returns nil, or why it did not.
func (a *Azure) putPolicy(container *azureContainer, match policyMatch, properties map[string]any) *azureAnswer {
	if match.given && !match.holds(container.policy) {
		return wrongETag()
	}
	if container.policy != nil && container.policy.locked {
		return wrongState()
	}
	days, answer := policyDays(properties)
	if answer != nil {
		return answer
	}
	policy := &azurePolicy{days: days, etag: a.newETag()}
	policy.append, _ = properties["allowProtectedAppendWrites"].(bool)
	policy.appendAll, _ = properties["allowProtectedAppendWritesAll"].(bool)
	if policy.append && policy.appendAll {
		return armError(http.StatusBadRequest, "InvalidRequestPropertyValue",
			"allowProtectedAppendWrites and allowProtectedAppendWritesAll are mutually exclusive.")
	}
	// "The audit log includes up to seven time-based retention commands for locked
	// time-based retention policies": one put, one lock and five extensions.
	policy.history = []PolicyUpdate{{Update: "put", Days: days, Time: a.Now()}}
	container.policy = policy
	return nil
}

// deletePolicy: "Aborts an unlocked immutability policy. Deleting a locked immutability
// policy is not allowed."
func (a *Azure) deletePolicy(container *azureContainer, match policyMatch) *azureAnswer {
	if !match.holds(container.policy) {
		return wrongETag()
	}
	if container.policy.locked {
		return wrongState()
	}
	container.policy = nil
	return nil
}

// lockPolicy: "The only action allowed on a Locked policy is ExtendImmutabilityPolicy."
func (a *Azure) lockPolicy(container *azureContainer, match policyMatch) *azureAnswer {
	if !match.holds(container.policy) {
		return wrongETag()
	}
	policy := container.policy
	if policy.locked {
		return wrongState()
	}
	policy.locked, policy.etag = true, a.newETag()
	policy.history = append(policy.history, PolicyUpdate{Update: "lock", Days: policy.days, Time: a.Now()})
	return nil
}

// extendPolicy: "You can extend the retention period, but you can't decrease it. A maximum
// of five increases to the effective retention period is allowed over the lifetime of a
// locked policy" (learn.microsoft.com/azure/storage/blobs/immutable-storage-overview).
// Azure documents no code for the last two.
func (a *Azure) extendPolicy(container *azureContainer, match policyMatch, properties map[string]any) *azureAnswer {
	if !match.holds(container.policy) {
		return wrongETag()
	}
	policy := container.policy
	if !policy.locked {
		return wrongState()
	}
	days, answer := policyDays(properties)
	if answer != nil {
		return answer
	}
	refused := func(why string) *azureAnswer {
		return armError(http.StatusConflict, "ContainerImmutabilityPolicyFailure", "Operation not allowed on immutability policy: %s.", why)
	}
	for name, now := range map[string]bool{"allowProtectedAppendWrites": policy.append, "allowProtectedAppendWritesAll": policy.appendAll} {
		// "This property cannot be changed with ExtendImmutabilityPolicy API"
		if asked, ok := properties[name].(bool); ok && asked != now {
			return refused(name + " cannot be changed")
		}
	}
	extensions := 0
	for _, update := range policy.history {
		if update.Update == "extend" {
			extensions++
		}
	}
	switch {
	case days <= policy.days:
		return refused("the retention interval can only be increased")
	case extensions >= 5:
		return refused("the retention interval was increased five times")
	}
	policy.days, policy.etag = days, a.newETag()
	policy.history = append(policy.history, PolicyUpdate{Update: "extend", Days: days, Time: a.Now()})
	return nil
}
