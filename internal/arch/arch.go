// Package arch has no code: its tests keep the rooms of the house apart.
package arch
