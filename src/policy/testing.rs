//! Small worlds for the tests of this room.
