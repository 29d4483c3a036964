//! Real resource files for tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a good resource file, its directory and its script; `name` may go on with further lines.
pub(crate) fn resource_file(directory: &Path, file: &str, name: &str) {
    let path = directory.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    script(&path.with_file_name("create.sh"));
    let text = format!("name: {name}\ncreation: ./create.sh\ndocker:\n  image: postgres:17\n");
    fs::write(path, text).unwrap();
}

/// Writes a script that can be run.
pub(crate) fn script(path: &Path) {
    fs::write(path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
