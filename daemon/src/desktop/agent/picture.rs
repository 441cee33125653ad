//! What is on the screen, as an image file.

use std::io::Cursor;

use base64::Engine;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::codecs::webp::WebPEncoder;
use image::{RgbImage, imageops};
use serde_json::{Value, json};
use x11rb::connection::Connection;
use x11rb::protocol::xfixes::ConnectionExt as _;
use x11rb::protocol::xproto::{ConnectionExt as _, ImageFormat, ImageOrder};

use super::{Agent, AgentError, Format, Point, Region, Wanted};

const BYTES_A_PIXEL: usize = 4;

impl Agent {
    pub(super) fn picture(&self, wanted: &Wanted) -> Result<Value, AgentError> {
        let region = self.region(wanted.region)?;
        let mut image = self.grab(region)?;
        if wanted.show_cursor {
            self.draw_cursor(&mut image, region)?;
        }
        if wanted.scale != 1.0 {
            let scaled = |side: u32| ((side as f32 * wanted.scale).round() as u32).max(1);
            let (width, height) = (scaled(image.width()), scaled(image.height()));
            image = imageops::resize(&image, width, height, imageops::FilterType::Triangle);
        }
        let bytes = encode(&image, wanted.format, wanted.quality)
            .map_err(|error| AgentError::Refused(format!("encode the image: {error}")))?;
        Ok(json!({
            "screenshot": base64::engine::general_purpose::STANDARD.encode(&bytes),
            "sizeBytes": bytes.len(),
            "cursorPosition": self.pointer()?,
        }))
    }

    fn region(&self, wanted: Option<Region>) -> Result<Region, AgentError> {
        let (width, height) = (self.screen.width_in_pixels.into(), self.screen.height_in_pixels.into());
        let region = wanted.unwrap_or(Region { x: 0, y: 0, width, height });
        let fits = |from: i32, length: i32, all: i32| from >= 0 && length >= 1 && length <= all - from;
        if fits(region.x, region.width, width) && fits(region.y, region.height, height) {
            return Ok(region);
        }
        let Region { x, y, width: w, height: h } = region;
        Err(AgentError::Refused(format!(
            "the region {x},{y} with {w} by {h} pixels is not on the screen, which has {width} by {height}"
        )))
    }

    fn grab(&self, region: Region) -> Result<RgbImage, AgentError> {
        let Region { x, y, width, height } = region;
        let reply = self
            .connection
            .get_image(
                ImageFormat::Z_PIXMAP,
                self.screen.root,
                x as i16,
                y as i16,
                width as u16,
                height as u16,
                u32::MAX,
            )?
            .reply()?;
        let is_known = reply.depth == 24 && self.connection.setup().image_byte_order == ImageOrder::LSB_FIRST;
        let pixels = width as usize * height as usize;
        if !is_known || reply.data.len() != pixels * BYTES_A_PIXEL {
            return Err(AgentError::Refused(format!(
                "a screen of {} bits a pixel is not understood",
                reply.depth
            )));
        }
        let rgb =
            reply.data.chunks_exact(BYTES_A_PIXEL).flat_map(|bgrx| [bgrx[2], bgrx[1], bgrx[0]]).collect();
        Ok(RgbImage::from_raw(width as u32, height as u32, rgb).expect("three bytes for each pixel"))
    }

    /// The server keeps it out of the screen's own image.
    fn draw_cursor(&self, image: &mut RgbImage, region: Region) -> Result<(), AgentError> {
        self.connection.xfixes_query_version(5, 0)?.reply()?;
        let cursor = self.connection.xfixes_get_cursor_image()?.reply()?;
        let corner = Point {
            x: i32::from(cursor.x) - i32::from(cursor.xhot) - region.x,
            y: i32::from(cursor.y) - i32::from(cursor.yhot) - region.y,
        };
        let width = usize::from(cursor.width).max(1);
        for (at, pixel) in cursor.cursor_image.iter().enumerate() {
            let (x, y) = (corner.x + (at % width) as i32, corner.y + (at / width) as i32);
            let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { continue };
            let Some(under) = image.get_pixel_mut_checked(x, y) else { continue };
            // Colours are multiplied by their opacity already.
            let [blue, green, red, alpha] = pixel.to_le_bytes();
            for (under, over) in under.0.iter_mut().zip([red, green, blue]) {
                let rest = u32::from(*under) * (255 - u32::from(alpha)) / 255;
                *under = (u32::from(over) + rest).min(255) as u8;
            }
        }
        Ok(())
    }
}

fn encode(image: &RgbImage, format: Format, quality: u8) -> image::ImageResult<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    match format {
        // What is on screens has large even areas; more effort would take longer than sending what it saves.
        Format::Png => image.write_with_encoder(PngEncoder::new_with_quality(
            &mut bytes,
            CompressionType::Fast,
            FilterType::Adaptive,
        ))?,
        Format::Jpeg => image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, quality))?,
        // Nothing is lost in it, whatever the quality: there is no other in Rust.
        Format::Webp => image.write_with_encoder(WebPEncoder::new_lossless(&mut bytes))?,
    }
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_what_it_says() {
        let image = RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 4, y as u8 * 5, 7]));

        for (format, magic) in
            [(Format::Png, &b"\x89PNG"[..]), (Format::Jpeg, b"\xff\xd8\xff"), (Format::Webp, b"RIFF")]
        {
            let bytes = encode(&image, format, 90).unwrap();
            assert!(bytes.starts_with(magic), "{format:?}");
            let back = image::load_from_memory(&bytes).unwrap().into_rgb8();
            assert_eq!(back.dimensions(), (64, 48));
            let (x, y) = (40, 30);
            for (was, is) in image.get_pixel(x, y).0.iter().zip(back.get_pixel(x, y).0) {
                assert!(was.abs_diff(is) < 8, "{format:?}: {was} {is}");
            }
        }
    }
}
