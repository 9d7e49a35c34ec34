//! The session's rules, on a clock that the test moves.
