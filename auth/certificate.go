package auth

import (
	"context"
	"strings"
)

// Certified returns who has that name, the one to log in with, by a certificate
// that says so and that the caller has verified. Errors: ErrCredentials.
func (s *Service) Certified(ctx context.Context, name string) (Caller, error) {
	kind, account := User, name
	if robot, ok := strings.CutPrefix(name, RobotPrefix); ok {
		kind, account = Robot, robot
	}
	c, _, err := s.state(ctx, kind, account, "")
	return c, err
}

// IsLoginName tells whether somebody could log in with that name: a user, or with
// RobotPrefix a robot.
func IsLoginName(name string) bool {
	return checkName(strings.TrimPrefix(name, RobotPrefix)) == nil
}
