// Which partition of AWS a region is in, and whether a host is one of AWS's.
//
// Rules:
//   - Both come from the SDK's data: a partition that it does not know could not be served anyway.
//   - A host is AWS's only by the domain of a partition at its end, never by a part of its name.

package main

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// s3Partition returns the partition of a region, as it is written in ARNs.
func s3Partition(region string) string {
	endpoint, err := s3.NewDefaultEndpointResolver().ResolveEndpoint(region, s3.EndpointResolverOptions{})
	if err != nil || endpoint.PartitionID == "" {
		return "aws"
	}
	return endpoint.PartitionID
}

// isAWSHost says that an endpoint is one of AWS's own, such as a VPC endpoint. Its partition is that of the region, or of
// one that its name tells.
func isAWSHost(host, region string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	// A label that is no region stands for AWS's largest partition, so that its domains are always among them.
	for _, region := range append(strings.Split(host, "."), region) {
		if slices.ContainsFunc(awsDomains(region), func(domain string) bool { return strings.HasSuffix(host, "."+domain) }) {
			return true
		}
	}
	return false
}

// awsDomains are the domains of a region's partition, such as amazonaws.com and api.aws.
func awsDomains(region string) (domains []string) {
	for _, dualStack := range []bool{false, true} {
		endpoint, err := sts.NewDefaultEndpointResolverV2().ResolveEndpoint(context.Background(), sts.EndpointParameters{
			Region: &region, UseDualStack: aws.Bool(dualStack), UseFIPS: aws.Bool(false), UseGlobalEndpoint: aws.Bool(false)})
		if err != nil { // the partition has no dual stack
			continue
		}
		// Every regional endpoint is sts.REGION.DOMAIN.
		if domain, ok := strings.CutPrefix(endpoint.URI.Hostname(), "sts."+region+"."); ok && strings.Contains(domain, ".") {
			domains = append(domains, domain)
		}
	}
	return domains
}
