//! Containers of real engines on hosts that a mesh of real daemons joins.
//!
//! Without root or a container engine the tests are skipped, and say so.

mod hosts;

mod guards;
mod positions;
mod presence;
