# How a vat hands out its services. `Restorer` never leaves the process.
@0xb0f2fa7e5d83a1c6;

interface Restorer {
  # What an incoming Bootstrap message is turned into, since capnp-rpc knows one service only.

  restore @0 (id :Data) -> (cap :AnyPointer);
}

interface Persistent @0xc8cb212fcd9f5691 {
  # The standard interface of what outlives its connection, with its type parameters left out.

  save @0 (sealFor :AnyPointer) -> (sturdyRef :AnyPointer);
  # Here a sturdy reference is Text: a capability URI.
}
