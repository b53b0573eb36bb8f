//! PostgreSQL's types and ours.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::super::{DatabaseError, Parameter, Row, Value};

impl ToSql for Parameter<'_> {
    fn to_sql(&self, to: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Int(number) => number.to_sql(to, out),
            Self::Real(number) => number.to_sql(to, out),
            Self::Blob(bytes) | Self::Text(bytes) => bytes.to_sql(to, out),
            Self::Null => Ok(IsNull::Yes),
        }
    }

    fn accepts(to: &Type) -> bool {
        [Type::INT8, Type::FLOAT8, Type::BYTEA].contains(to)
    }

    to_sql_checked!();
}

impl FromSql<'_> for Value {
    fn from_sql(from: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(match *from {
            Type::INT8 => Self::Int(i64::from_sql(from, raw)?),
            Type::INT4 => Self::Int(i32::from_sql(from, raw)?.into()),
            Type::FLOAT8 => Self::Real(f64::from_sql(from, raw)?),
            _ => Self::Bytes(raw.to_vec()),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(from: &Type) -> bool {
        [Type::INT8, Type::INT4, Type::FLOAT8, Type::BYTEA, Type::TEXT].contains(from)
    }
}

pub(super) fn row(row: &tokio_postgres::Row) -> Result<Row, DatabaseError> {
    Ok(Row((0..row.len()).map(|column| row.try_get(column)).collect::<Result<_, _>>()?))
}
