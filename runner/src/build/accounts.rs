//! Whom `--chown` means, by the image's own `/etc/passwd` and `/etc/group`.

use super::tree::Tree;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// `user[:group]`. A user without a group brings his own; a number that nobody has is its own group.
pub fn owner_of(text: &str, image: &Tree) -> Result<Owner, String> {
    owner_among(text, image.kept("etc/passwd"), image.kept("etc/group"))
}

fn owner_among(text: &str, passwd: &[u8], group: &[u8]) -> Result<Owner, String> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own_gid) = match user.parse() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let entry = entry(passwd, user).ok_or_else(|| format!("the image has no user {user}"))?;
            (id(&entry, 2)?, id(&entry, 3)?)
        }
    };
    let gid = match wanted_group {
        None | Some("") => own_gid,
        Some(name) => match name.parse() {
            Ok(gid) => gid,
            Err(_) => id(&entry(group, name).ok_or_else(|| format!("the image has no group {name}"))?, 2)?,
        },
    };
    Ok(Owner { uid, gid })
}

/// The fields of the line that begins with `name`.
fn entry(file: &[u8], name: &str) -> Option<Vec<String>> {
    let text = String::from_utf8_lossy(file);
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = lines.find(|fields| fields.first() == Some(&name))?;
    Some(fields.into_iter().map(str::to_owned).collect())
}

fn id(fields: &[String], at: usize) -> Result<u32, String> {
    let name = fields.first().map(String::as_str).unwrap_or_default();
    fields
        .get(at)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| format!("the image's entry of {name} is broken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_go_by_name_or_number() {
        let passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1000:2000::/:/bin/sh\nbad:x\n";
        let group = b"root:x:0:\nstaff:x:50:app\n";
        let owner = |text| owner_among(text, passwd, group).map(|owner| (owner.uid, owner.gid));

        assert_eq!(owner("app"), Ok((1000, 2000)));
        assert_eq!(owner("app:staff"), Ok((1000, 50)));
        assert_eq!(owner("7"), Ok((7, 7)));
        assert_eq!(owner("7:root"), Ok((7, 0)));
        assert_eq!(owner("app:9"), Ok((1000, 9)));
        assert_eq!(owner("who"), Err("the image has no user who".into()));
        assert_eq!(owner("app:who"), Err("the image has no group who".into()));
        assert_eq!(owner("bad"), Err("the image's entry of bad is broken".into()));
    }
}
