//! Meshes of real programs behind routers of nine kinds, in network namespaces.
//!
//! One test has a node behind two routers of each kind in one mesh, prints who reaches whom as a matrix, and holds each cell
//! from both ends. By hand, each pair can have a mesh of its own, which takes half an hour:
//!
//! ```text
//! cargo nextest run --features etcd --test nat --run-ignored only -E 'test(in_a_mesh_of_its_own)' --no-capture
//! MESHD_NAT=plain,cone cargo nextest run ...    # only pairs of these kinds
//! ```
//!
//! Without root `tests/run` lists the tests as skipped.

/// Whole meshes of real programs in network namespaces, which the system tests use as well.
#[path = "../system/mesh.rs"]
#[allow(dead_code, reason = "the system tests use what these do not")]
mod mesh;

/// Programs that are installed or unpacked, which the system tests look for as well.
#[path = "../system/tool.rs"]
mod tool;

mod lab;

mod mappings;
mod matrix;
mod meeting;
mod scenarios;
mod streams;
mod words;
