package main

import "testing"

// A VPC endpoint is AWS as well: the owner is checked.
func TestS3EndpointsOfAWS(t *testing.T) {
	for _, test := range []struct {
		endpoint, region string
		want             bool
	}{
		{"", "eu-west-1", true},
		{"https://s3.eu-west-1.amazonaws.com", "eu-west-1", true},
		{"https://s3.amazonaws.com", "us-east-1", true},
		{"https://S3.Eu-West-1.AmazonAWS.com.", "eu-west-1", true},
		{"https://s3-us-gov-west-1.amazonaws.com", "us-gov-west-1", true},
		{"https://bucket.vpce-1a2b.s3.eu-west-1.vpce.amazonaws.com", "eu-west-1", true},
		{"https://bucket.vpce-1a2b.s3.us-iso-east-1.vpce.c2s.ic.gov", "us-iso-east-1", true},
		{"https://s3.eu-west-1.api.aws", "eu-west-1", true},
		{"https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1", true},
		// The host tells more than a region that is wrong.
		{"https://s3.cn-north-1.amazonaws.com.cn", "eu-west-1", true},
		{"https://s3.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", true},
		{"https://s3.us-iso-east-1.c2s.ic.gov", "us-iso-east-1", true},
		{"https://s3.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1", true},
		{"https://s3.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1", true},
		{"https://s3.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1", true},
		{"https://s3.us-isof-south-1.csp.hci.ic.gov", "eu-west-1", true},
		{"https://minio.example.com", "eu-west-1", false},
		{"https://amazonaws.com.example.com", "eu-west-1", false},
		{"https://s3.us-iso-east-1.example.gov", "us-iso-east-1", false},
		{"https://notamazonaws.com", "eu-west-1", false},
		{"https://amazonaws.com", "eu-west-1", false},
		{"https://10.0.0.1:9000", "eu-west-1", false},
		{"https://com", "com", false},
		{"https://minio", "aws-global", false},
	} {
		store, err := newS3Clients(newMetrics()).openStore(bucketRef{Name: "backups", Region: test.region}, testS3Credentials(map[string]string{s3KeyEndpoint: test.endpoint}))
		if err != nil {
			t.Fatal(err)
		}
		if got := store.(*s3Bucket).aws; got != test.want {
			t.Errorf("%q in %s: AWS is %t", test.endpoint, test.region, got)
		}
	}
}

func TestS3Partitions(t *testing.T) {
	clients := newS3Clients(newMetrics())
	for region, want := range map[string]string{
		"eu-west-1": "aws", "cn-north-1": "aws-cn", "us-gov-west-1": "aws-us-gov", "eusc-de-east-1": "aws-eusc", "us-iso-east-1": "aws-iso", "us-isob-east-1": "aws-iso-b",
		"eu-isoe-west-1": "aws-iso-e", "us-isof-south-1": "aws-iso-f", "us-gov-east-1": "aws-us-gov", "cn-northwest-1": "aws-cn", "mx-central-1": "aws", "attic": "aws",
	} {
		for endpoint, want := range map[string]string{"": want, "https://minio.example.com": "aws", "https://s3.amazonaws.com": want, "https://vpce-1." + awsDomains(region)[0]: want} {
			store, err := clients.openStore(bucketRef{Name: "backups", Region: region}, testS3Credentials(map[string]string{s3KeyEndpoint: endpoint}))
			if err != nil {
				t.Fatal(err)
			}
			if got := store.(*s3Bucket).tlsStatements(s3Whole)[0].Resource[0]; got != "arn:"+want+":s3:::backups" {
				t.Errorf("%s %s: got %s", region, endpoint, got)
			}
		}
	}
}
