//! Races: found where PTX has one, and only there.
