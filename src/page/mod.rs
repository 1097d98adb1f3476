//! The page: what the mesh is and does, for a person with a browser. It only reads.
//!
//! A browser receives a few files without a token: the frame, one stylesheet, one script and an icon. They have no data of the mesh, and are the
//! same for everybody. The person pastes an API token into the frame. The script keeps it in memory alone, and shows it with each request
//! for a *view*, which is a part of the page that the server makes from the same values as the API. Each request for a view is checked
//! like a call of the API ([`crate::os::web`]), with a scope for each view ([`calls`]).
//!
//! The script reads the stream of changes with `fetch`, because an `EventSource` cannot send the token in a header, and a token in a URL
//! ends in logs.
//!
//! Many pages cost little more than one: a view is made for one of them at a time ([`making`]), and one of them at a time looks for
//! changes ([`changes`]).
//!
//! Names, reasons and labels come from members and from their containers. `maud` escapes each of them. If one were not escaped, nothing
//! would run either: the browser accepts scripts and styles only as files of this server ([`server::secured`]).
//!
//! | file | what it is |
//! |---|---|
//! | [`calls`] | the views of nodes and of coordinators, each with the scope that it needs |
//! | [`frame`] | the frame around the views |
//! | [`table`] | the one form of all tables, the filter, and the bounds of a view |
//! | [`nodes`], [`paths`], [`why`] | nodes, the paths to them and between them, and why a path is in use |
//! | [`services`] | the instances of services, and why each one is in the answers or is not |
//! | [`problems`], [`tokens`], [`policy`], [`audit`] | the views with these names |
//! | [`history`], [`samples`] | graphs of the last hour, and what is measured for them |
//! | [`changes`], [`making`] | when something has changed, and a view that many pages ask for |
//! | [`server`] | the answers of a server: files, views, and the headers of all |

pub mod audit;
pub mod calls;
pub mod changes;
pub mod frame;
pub mod history;
pub mod making;
pub mod nodes;
pub mod paths;
pub mod policy;
pub mod problems;
pub mod samples;
pub mod server;
pub mod services;
pub mod table;
pub mod tokens;
pub mod why;

#[cfg(test)]
mod tests;
