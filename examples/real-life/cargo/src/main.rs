fn main() {
    println!("{}", hex::encode("life"));
}

#[test]
fn it_is_hexadecimal() {
    assert_eq!(hex::encode("life"), "6c696665");
}
