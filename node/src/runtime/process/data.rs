//! A Postgres data directory: where it is, whose it is, which version's, how it is initialised, whether it was left clean.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::account::Account;
use super::home::{Log, failed};
use super::installation::{Installation, image_version};
use super::server;
use crate::runtime::{InstanceSpec, RuntimeError, variable};

/// Returns the data directory within the instance's data: `PGDATA`, or the official image's default for it, if that lies
/// below the volume, else the data itself.
fn directory(spec: &InstanceSpec) -> PathBuf {
    let default = match image_version(&spec.image) {
        Some(version) if version >= 18 => format!("/var/lib/postgresql/{version}/docker"),
        Some(_) | None => "/var/lib/postgresql/data".to_owned(),
    };
    let pgdata = variable(&spec.env, "PGDATA").map_or(default, str::to_owned);
    match Path::new(&pgdata).strip_prefix(&spec.volume) {
        Ok(below) if below.as_os_str().is_empty() => spec.data.clone(),
        Ok(below)
            if below
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_))) =>
        {
            spec.data.join(below)
        }
        Ok(_) | Err(_) => spec.data.clone(),
    }
}

/// Makes the data directory of `spec` one of `account`'s alone, that it can get into, and returns its path without
/// symbolic links. The instance's data itself has to be there: where it is not, something has not been mounted, and a
/// new database would take the place of the one that is meant.
///
/// Its files change hands too if they were another's: a base restored in a container belongs to the user number that
/// Postgres has there.
pub(super) fn own(spec: &InstanceSpec, account: &Account) -> Result<PathBuf, RuntimeError> {
    fs::metadata(&spec.data).map_err(|error| failed("use the data in", &spec.data, &error))?;
    let data = directory(spec);
    let make = || {
        DirBuilder::new().recursive(true).mode(0o700).create(&data)?;
        data.canonicalize()
    };
    let data = make().map_err(|error| failed("make", &data, &error))?;
    let metadata = fs::metadata(&data).map_err(|error| failed("look at", &data, &error))?;
    if metadata.uid() != account.uid {
        if !geteuid().is_root() {
            return Err(RuntimeError::Unsupported {
                message: format!("{} belongs to user {}, not to us", data.display(), metadata.uid()),
                hint: "run zdapd as root, or restore with the same runtime that runs the clones".to_owned(),
            });
        }
        give_all(&data, account).map_err(|error| failed("change the owner of", &data, &error))?;
    }
    // What Postgres accepts: its own user, and at most reading by the group.
    if metadata.mode() & 0o027 != 0 {
        fs::set_permissions(&data, Permissions::from_mode(0o700))
            .map_err(|error| failed("change the mode of", &data, &error))?;
    }
    if let Some(above) = data.parent() {
        account.can_enter(above)?;
    }
    Ok(data)
}

/// Gives a directory and all in it to `account`, itself last: until then it is known not to be done.
fn give_all(directory: &Path, account: &Account) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => give_all(&entry.path(), account)?,
            false => lchown(entry.path(), Some(account.uid), Some(account.gid))?,
        }
    }
    chown(directory, Some(account.uid), Some(account.gid))
}

/// Returns the major version that `data` is of; nothing if it is not initialised.
pub(super) fn version(data: &Path) -> Result<Option<u32>, RuntimeError> {
    let path = data.join("PG_VERSION");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| failed("read", &path, &error))?,
    };
    text.trim().parse().map(Some).map_err(|_| {
        let reason = format!("`{}` is not a version that is supported", text.trim());
        failed("read", &path, &io::Error::other(reason))
    })
}

/// Removes the lock file of a server that runs no more; it would only be in the way if its number was taken by another
/// process.
pub(super) fn forget_dead_server(data: &Path) -> Result<(), RuntimeError> {
    let path = data.join("postmaster.pid");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Returns whether the last server on `data` shut down in order, by what it wrote into its control file.
pub(super) fn is_clean(data: &Path) -> Result<bool, RuntimeError> {
    let path = data.join("global/pg_control");
    let mut state = [0; 4];
    fs::File::open(&path)
        .and_then(|file| file.read_exact_at(&mut state, STATE_OFFSET))
        .map_err(|error| failed("read", &path, &error))?;
    Ok(SHUT_DOWN.contains(&u32::from_ne_bytes(state)))
}

/// Initialises `data` as the official image does: superuser, password, database, authentication of hosts.
///
/// The password is asked for on the socket too: under this runtime clients come that way.
pub(super) async fn initialise(
    spec: &InstanceSpec,
    data: &Path,
    private: &Path,
    installation: &Installation,
    account: &Account,
    log: &Log,
) -> Result<(), RuntimeError> {
    let settings = Settings::of(spec)?;
    let mut arguments: Vec<OsString> = vec!["-D".into(), data.into()];
    arguments.push(format!("--username={}", settings.user).into());
    arguments.push(format!("--auth={}", settings.method).into());
    arguments.push("--encoding=UTF8".into());
    let password_file = private.join("password");
    if let Some(password) = &settings.password {
        write_private(&password_file, password, account)
            .map_err(|error| failed("write", &password_file, &error))?;
        arguments.push("--pwfile".into());
        arguments.push(password_file.clone().into());
    }
    arguments.extend(settings.initdb_arguments.iter().map(OsString::from));
    let initdb = run(
        &installation.programs.join("initdb"),
        &arguments,
        "",
        spec,
        account,
        log,
    )
    .await;
    match fs::remove_file(&password_file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(failed("remove", &password_file, &error));
        }
        Ok(()) | Err(_) => initdb?,
    }

    let access = data.join("pg_hba.conf");
    OpenOptions::new()
        .append(true)
        .open(&access)
        .and_then(|mut file| writeln!(file, "\nhost all all all {}", settings.method))
        .map_err(|error| failed("write", &access, &error))?;

    if settings.database != "postgres" {
        // Single-user mode: nobody can see the server before it is ready, and there is nothing to wait for.
        let arguments: Vec<OsString> = vec![
            "--single".into(),
            "-D".into(),
            data.into(),
            "-c".into(),
            "exit_on_error=on".into(),
            "postgres".into(),
        ];
        let statement = format!("CREATE DATABASE \"{}\"\n", settings.database.replace('"', "\"\""));
        run(
            &installation.programs.join("postgres"),
            &arguments,
            &statement,
            spec,
            account,
            log,
        )
        .await?;
    }
    Ok(())
}

/// What the official image's variables say about initialisation.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    user: String,
    password: Option<String>,
    database: String,
    method: String,
    initdb_arguments: Vec<String>,
}

impl Settings {
    fn of(spec: &InstanceSpec) -> Result<Self, RuntimeError> {
        let given = |name| variable(&spec.env, name).filter(|value| !value.is_empty());
        let user = given("POSTGRES_USER").unwrap_or("postgres");
        let password = given("POSTGRES_PASSWORD").map(str::to_owned);
        let method = given("POSTGRES_HOST_AUTH_METHOD").unwrap_or("scram-sha-256");
        if password.is_none() && method != "trust" {
            return Err(RuntimeError::Exited {
                instance: spec.id.name(),
                status: 1,
                output: NO_PASSWORD.to_owned(),
            });
        }
        let database = given("POSTGRES_DB").unwrap_or(user);
        if database.contains('\n') {
            return Err(unsupported(format!(
                "POSTGRES_DB holds a line break: {database:?}"
            )));
        }
        let arguments = given("POSTGRES_INITDB_ARGS").unwrap_or_default();
        if arguments.contains(['"', '\'', '\\', '$', '`']) {
            return Err(unsupported(format!(
                "POSTGRES_INITDB_ARGS is written for a shell: {arguments}"
            )));
        }
        Ok(Self {
            user: user.to_owned(),
            password,
            database: database.to_owned(),
            method: method.to_owned(),
            initdb_arguments: arguments.split_whitespace().map(str::to_owned).collect(),
        })
    }
}

fn unsupported(message: String) -> RuntimeError {
    RuntimeError::Unsupported {
        message,
        hint: "the process runtime takes plain values only; use `--runtime docker` for the rest".to_owned(),
    }
}

/// Runs a program of Postgres to its end, its output in the log. It ends with us if we are cancelled.
async fn run(
    program: &Path,
    arguments: &[OsString],
    input: &str,
    spec: &InstanceSpec,
    account: &Account,
    log: &Log,
) -> Result<(), RuntimeError> {
    let attempt = async {
        let mut child = Command::from(server::command(program, account, log)?)
            .args(arguments)
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends without reading says why by its status.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait().await
    };
    let status = attempt.await.map_err(|error| failed("run", program, &error))?;
    match status.success() {
        true => Ok(()),
        false => Err(RuntimeError::Exited {
            instance: spec.id.name(),
            status: server::status_number(status),
            output: log.tail(),
        }),
    }
}

fn write_private(path: &Path, text: &str, account: &Account) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    chown(path, Some(account.uid), Some(account.gid))
}

/// `pg_control` begins with the system identifier (8 bytes) and two version numbers (4 each), in every version there is.
const STATE_OFFSET: u64 = 16;
/// `DB_SHUTDOWNED` and `DB_SHUTDOWNED_IN_RECOVERY`.
const SHUT_DOWN: [u32; 2] = [1, 2];
/// What the official image says and does.
const NO_PASSWORD: &str = "Error: Database is uninitialized and superuser password is not specified.
       You must specify POSTGRES_PASSWORD to a non-empty value for the superuser.
       You may also use \"POSTGRES_HOST_AUTH_METHOD=trust\" to allow all connections without a password.";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tests::spec;

    #[test]
    fn pgdata_counts_where_it_lies_below_the_volume() {
        for (image, volume, pgdata, expected) in [
            ("postgres:15", "/var/lib/postgresql/data", None, "/pool/orders"),
            (
                "postgres:15",
                "/var/lib/postgresql/data",
                Some("/var/lib/postgresql/data/pg"),
                "/pool/orders/pg",
            ),
            ("postgres:15", "/var/lib/postgresql", None, "/pool/orders/data"),
            (
                "postgres:18",
                "/var/lib/postgresql",
                None,
                "/pool/orders/18/docker",
            ),
            ("postgres:15", "/data", Some("/elsewhere"), "/pool/orders"),
            ("postgres:15", "/data", Some("/data/../../etc"), "/pool/orders"),
        ] {
            let mut spec = spec("orders-k3v9x2mq");
            spec.image = image.to_owned();
            spec.volume = volume.to_owned();
            spec.env.extend(pgdata.map(|pgdata| format!("PGDATA={pgdata}")));
            assert_eq!(directory(&spec), Path::new(expected), "{volume} {pgdata:?}");
        }
    }

    #[test]
    fn data_that_is_not_there_is_named_and_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec("orders-k3v9x2mq");
        spec.data = directory.path().join("clone");
        let error = own(&spec, &Account::choose().unwrap()).unwrap_err().to_string();
        assert!(error.contains(spec.data.to_str().unwrap()), "{error}");
        assert!(!spec.data.exists());
    }

    #[test]
    fn a_missing_password_is_refused_as_the_official_image_does() {
        let mut spec = spec("orders-k3v9x2mq");
        spec.env.clear();
        let error = Settings::of(&spec).unwrap_err().to_string();
        assert!(error.contains("superuser password is not specified"), "{error}");
        spec.env.push("POSTGRES_HOST_AUTH_METHOD=trust".to_owned());
        assert_eq!(Settings::of(&spec).unwrap().password, None);
    }

    #[test]
    fn the_database_is_named_after_the_user_unless_given() {
        let mut spec = spec("orders-k3v9x2mq");
        spec.env.push("POSTGRES_USER=ada".to_owned());
        assert_eq!(Settings::of(&spec).unwrap().database, "ada");
        spec.env.push("POSTGRES_DB=orders".to_owned());
        assert_eq!(Settings::of(&spec).unwrap().database, "orders");
    }

    #[test]
    fn arguments_that_need_a_shell_are_refused_by_name() {
        let mut spec = spec("orders-k3v9x2mq");
        spec.env.push("POSTGRES_INITDB_ARGS=--locale=\"$X\"".to_owned());
        let error = Settings::of(&spec).unwrap_err().to_string();
        assert!(
            error.contains("POSTGRES_INITDB_ARGS") && error.contains("$X"),
            "{error}"
        );
    }
}
