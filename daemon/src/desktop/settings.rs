//! What Xfce is told before it starts, unless the user has told it otherwise: to ask nothing, and to leave nothing behind.

use std::io;
use std::path::Path;

/// Within the folder of the sockets; Xfce looks there before it looks at what its packages say.
pub const FOLDER: &str = "xdg";
const CHANNELS: &str = "xfce4/xfconf/xfce-perchannel-xml";

const FILES: [(&str, &str); 3] = [
    // Agents for keys would outlive the session, which nobody logs out of.
    (
        "xfce4-session.xml",
        r#"<channel name="xfce4-session" version="1.0">
  <property name="startup" type="empty">
    <property name="ssh-agent" type="empty"><property name="enabled" type="bool" value="false"/></property>
    <property name="gpg-agent" type="empty"><property name="enabled" type="bool" value="false"/></property>
  </property>
  <property name="general" type="empty"><property name="SaveOnExit" type="bool" value="false"/></property>
</channel>
"#,
    ),
    // Shadows cost a processor here.
    (
        "xfwm4.xml",
        r#"<channel name="xfwm4" version="1.0">
  <property name="general" type="empty"><property name="use_compositing" type="bool" value="false"/></property>
</channel>
"#,
    ),
    // One panel, whose plugins all come with it: else it asks what it should be.
    (
        "xfce4-panel.xml",
        r#"<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="size" type="uint" value="26"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
        <value type="int" value="2"/>
        <value type="int" value="3"/>
        <value type="int" value="4"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="applicationsmenu"/>
    <property name="plugin-2" type="string" value="tasklist"/>
    <property name="plugin-3" type="string" value="separator">
      <property name="expand" type="bool" value="true"/>
      <property name="style" type="uint" value="0"/>
    </property>
    <property name="plugin-4" type="string" value="clock"/>
  </property>
</channel>
"#,
    ),
];

pub fn write(folder: &Path) -> io::Result<()> {
    let channels = folder.join(CHANNELS);
    std::fs::create_dir_all(&channels)?;
    FILES.iter().try_for_each(|(name, text)| {
        std::fs::write(channels.join(name), format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}"))
    })
}
