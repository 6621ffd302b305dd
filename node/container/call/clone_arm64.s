#include "textflag.h"

// func rawClone(trap, a1, a2, a3 uintptr) (pid, errno uintptr)
TEXT ·rawClone(SB),NOSPLIT|NOFRAME,$0-48
	MOVD	a1+8(FP), R0
	MOVD	a2+16(FP), R1
	MOVD	a3+24(FP), R2
	MOVD	$0, R3
	MOVD	$0, R4
	MOVD	$0, R5
	MOVD	trap+0(FP), R8
	SVC // the way back is in a register
	CMN	$4095, R0
	BCC	done
	MOVD	$-1, R4
	MOVD	R4, pid+32(FP)
	NEG	R0, R0
	MOVD	R0, errno+40(FP)
	RET
done:
	MOVD	R0, pid+32(FP)
	MOVD	ZR, errno+40(FP)
	RET
