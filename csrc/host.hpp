// What the extension that owns kernels and threads lends to another one: plain functions, through which no
// exception passes.
#pragma once

#include "interrupt.hpp"
#include "kernels/kernels.hpp"

namespace nca {

struct Host {
    const Kernels* (*active_kernels)() noexcept; // null where PYNCA_ISA names none that there is
    void* (*start_team)(int threads) noexcept;   // null without memory
    int (*team_size)(void* team) noexcept;
    void (*run_team)(void* team, void (*function)(const void*, int), const void* context,
                     Watch& watch) noexcept;
    void (*end_team)(void* team) noexcept;
};

const Host& host();

} // namespace nca
