package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"bucketwarden/test/env"
)

// tamperS3 removes the default retention. A backup that is written then can be deleted, until bucketwarden has put the
// retention back and has had the store retain what was written meanwhile.
func (d *demo) tamperS3(ctx context.Context, s *side, client *s3.Client) ([]row, error) {
	delta := d.backups[1]
	key := s.key(delta)
	write := func() (version string, err error) {
		out, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(delta.Content)})
		if err != nil {
			return "", fmt.Errorf("writing a snapshot: %w", err)
		}
		return aws.ToString(out.VersionId), nil
	}
	remove := func(version string) error {
		_, err := client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: &key, VersionId: &version})
		return err
	}
	var kept string
	var begun time.Time
	if err := env.Eventually(ctx, patience, "a backup can be deleted while the retention is gone", func(ctx context.Context) error {
		_, err := client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &s.bucket,
			ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}})
		if err != nil {
			return fmt.Errorf("removing the default retention: %w", err)
		}
		begun = time.Now()
		if kept, err = write(); err != nil {
			return err
		}
		second, err := write()
		if err != nil {
			return err
		}
		// If bucketwarden was faster, once more.
		return remove(second)
	}); err != nil {
		return nil, err
	}
	if err := env.Eventually(ctx, patience, "S3 shows the retention again", s.expectLocked); err != nil {
		return nil, err
	}
	restored := time.Since(begun).Seconds()
	drift, err := d.eventNote(ctx, "PolicyDrift", s.bucket)
	if err != nil {
		return nil, err
	}
	var until time.Time
	if err := env.Eventually(ctx, patience, "what was written meanwhile is retained", func(ctx context.Context) error {
		out, err := client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &s.bucket, Key: &key, VersionId: &kept})
		if err != nil {
			return fmt.Errorf("reading its retention: %w", err)
		}
		if until = aws.ToTime(out.Retention.RetainUntilDate); out.Retention.Mode != types.ObjectLockRetentionModeCompliance {
			return fmt.Errorf("it is in mode %s", out.Retention.Mode)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	extended, err := d.eventNote(ctx, "VersionsExtended", s.bucket)
	if err != nil {
		return nil, err
	}
	refusal := refusalOf(remove(kept))
	if refusal == "" {
		return nil, errors.New("the store let the backup be deleted that was written while the retention was gone")
	}
	return []row{
		{"did", "removed the default retention with the root credentials, which S3 allows"},
		{"did", "wrote a delta twice meanwhile, and deleted the second version: it is gone"},
		{"saw", fmt.Sprintf("restored after %.1f s (--verify-interval=2s here), event PolicyDrift: %s", restored, drift)},
		{"saw", fmt.Sprintf("the first version is locked until %s, event VersionsExtended: %s", until.UTC().Format(time.RFC3339), extended)},
		{"did", "asked to delete that too"},
		{"store says", refusal},
	}, nil
}
