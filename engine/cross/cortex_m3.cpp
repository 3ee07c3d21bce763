// What a bare Cortex-M3 needs to run digest.cpp: where its stack begins and what it does first. Output and exit go to the
// debugger (semihosting), which the emulator plays.

extern "C" void _start();

extern "C" __attribute__((section(".vectors"), used)) const void *const vectors[2] = {
    reinterpret_cast<const void *>(0x20400000),  // the end of the second memory
    reinterpret_cast<const void *>(&_start),
};
