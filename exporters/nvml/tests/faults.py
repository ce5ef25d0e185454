"""Provokes one XID in this process, by the CUDA driver alone: `python faults.py 31` or `13`.

XID 31 is a page fault (a write to an address that is not mapped), XID 13 an exception of the graphics engine (a write
to an address that is not aligned). Both end this process's context and touch no other. Prints CUDA's word; exits with 1
if CUDA can't be used, and with 0 once the fault was seen.
"""

import ctypes
import sys

PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry fault(.param .u64 address)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<2>;
    ld.param.u64 %rd1, [address];
    mov.u32 %r1, 1;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""


class CudaError(Exception):
    """A call of the driver that failed."""


def main(xid: int) -> int:
    """Writes where it must not."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        result = getattr(cuda, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            cuda.cuGetErrorName(result, ctypes.byref(text))
            raise CudaError(f"{name}: {(text.value or b'?').decode()}")

    device, context = ctypes.c_int(), ctypes.c_void_p()
    module, function, memory = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuModuleLoadData", ctypes.byref(module), PTX)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"fault")
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(256))
    address = ctypes.c_uint64(0x10 if xid == 31 else memory.value + 1)
    arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.pointer(address), ctypes.c_void_p))
    one = ctypes.c_uint(1)
    call("cuLaunchKernel", function, one, one, one, one, one, one, ctypes.c_uint(0), None, arguments, None)
    try:
        call("cuCtxSynchronize")
    except CudaError as error:
        print(error)
        return 0
    print("nothing happened", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1])))
    except (CudaError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
