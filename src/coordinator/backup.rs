//! `mesh-coordinator backup FILE` and `restore FILE`.

use std::path::Path;

use super::running::lock;
use super::{Config, Failure, store, tls};
use crate::os::audit::{self, Event, Text, What, Who};
use crate::os::file;
use crate::os::progress::ProgressLine;
use crate::protocol::api::ErrorCode;

fn failure(error: store::StoreError) -> Failure {
    match error {
        store::StoreError::Failed(why) => Failure::new(ErrorCode::Configuration, why),
        error => Failure::new(ErrorCode::Configuration, error),
    }
}

/// Writes records, leases, spent tokens and the TLS key into one file. The coordinator may run.
///
/// # Errors
/// The reason and the remedy, as one line for the administrator.
pub(super) fn backup(config: &Config, to: &Path) -> Result<(), Failure> {
    refuse_etcd(config)?;
    let progress = ProgressLine::start("writing the backup");
    store::back_up(&config.state_dir, &tls::FILES, to).map_err(failure)?;
    drop(progress);
    eprintln!(
        "{} holds the coordinator's TLS key: keep it as secret as {}",
        to.display(),
        config.state_dir.display()
    );
    Ok(())
}

/// Puts a backup in the place of the coordinator's state. The coordinator must not run.
///
/// # Errors
/// The reason and the remedy, as one line for the administrator.
pub(super) fn restore(config: &Config, from: &Path) -> Result<(), Failure> {
    refuse_etcd(config)?;
    if !from.is_file() {
        return Err(Failure::new(
            ErrorCode::NotFound,
            format!(
                "there is no file {}; name one that `mesh-coordinator backup` wrote",
                from.display()
            ),
        ));
    }
    file::private_dir(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let progress = ProgressLine::start("restoring the backup");
    store::restore(from, &config.state_dir, |files| {
        for (name, content) in files {
            if tls::FILES.contains(&name.as_str()) {
                file::write_atomic(&config.state_dir.join(name), content, 0o600)
                    .map_err(|e| store::StoreError::Failed(e.to_string()))?;
            }
        }
        Ok(())
    })
    .map_err(failure)?;
    drop(progress);
    note_restored(&config.state_dir, from);
    eprintln!(
        "restored; start mesh-coordinator, and the nodes tell it what has happened since the backup. Until they have, tokens older than this moment admit nobody"
    );
    Ok(())
}

/// Records who restored which backup. The store is restored already, so a log that cannot be written is no failure.
fn note_restored(state_dir: &Path, from: &Path) {
    let by = Who::Local {
        uid: nix::unistd::getuid().as_raw(),
        pid: i32::try_from(std::process::id()).ok(),
    };
    let backup = Text::of(&from.display());
    let event = Event::done(by, What::Restored { backup });
    if let Err(error) = audit::append(state_dir, event) {
        tracing::warn!(%error, "the audit log does not say that the backup was restored");
    }
}

fn refuse_etcd(config: &Config) -> Result<(), Failure> {
    if config.etcd.is_none() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Configuration,
        format!(
            "the records are in etcd: save them with `etcdctl snapshot save FILE`, and keep tls.key and tls.crt of {} beside it; a coordinator notices when such a snapshot was put back",
            config.state_dir.display()
        ),
    ))
}
