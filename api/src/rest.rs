//! The REST door's shapes: exactly the fields, names and nullability that the public SDKs expect.
