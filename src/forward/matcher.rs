//! Which rule speaks of a pair of members and a service, at a cost that does not grow with the number of rules.
